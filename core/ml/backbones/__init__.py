"""Frozen pretrained networks that adapters are put into."""
