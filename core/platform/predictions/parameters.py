"""What is asked of a batch prediction besides model and images."""

from dataclasses import asdict, dataclass
from typing import Any, Self

#: In place of a split: all of a dataset's images.
ALL_SPLITS = "all"


@dataclass(frozen=True)
class Parameters:
    """How scores are made and how many are told; each means what it does in `classify`.

    Attributes:
        top_k: classes per image.
        function_to_apply: `softmax`, `sigmoid` or `none`.
        threshold: an image whose best score is below it is rejected; None rejects nothing.
    """

    top_k: int = 5
    function_to_apply: str = "softmax"
    threshold: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the form that rows keep."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        """Return what `to_json` wrote."""
        return cls(**body)
