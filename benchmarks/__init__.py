"""Measurements, and the small tasks they are made on."""
