"""Datasets: from uploaded bytes to rows that name an immutable set of images."""
