"""Batch predictions: a model's answers to all images of an archive or of a dataset."""
