"""What the API and the worker stand on: the platform (no torch) and the ML code (no database)."""
