"""Pretraining of the starter pair on generated images; nothing at run time imports this package."""
