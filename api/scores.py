"""The scores of classes, under the name that the protocols know them by."""

from core.ml.inference.scores import (
    OutputFunction,
    Ranked,
    apply_function,
    is_rejected,
    rank_classes,
)

__all__ = ["OutputFunction", "Ranked", "apply_function", "is_rejected", "rank_classes"]
