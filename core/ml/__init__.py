"""The method in PyTorch: backbones, adapters, losses, training, export, inference. No web, no database."""
