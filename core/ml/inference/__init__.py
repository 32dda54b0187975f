"""Classify images with exported models that share resident backbones."""
