"""Distillation losses on logits, one file each, differentiable in student and teacher alike."""
