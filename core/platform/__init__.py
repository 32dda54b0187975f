"""Database, storage, jobs, datasets and models. Never imports torch."""
