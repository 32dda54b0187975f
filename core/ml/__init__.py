"""The method in PyTorch, from backbones to inference. Knows no web and no database."""
