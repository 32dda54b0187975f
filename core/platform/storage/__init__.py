"""Content-addressed blobs: archives, image caches, checkpoints, exported models."""
