"""What to mind about the licence of pretrained weights, by the identifier that timm states.

The weights are the user's affair: nothing is refused for its licence, but nothing hides it either.
"""

from collections.abc import Mapping
from types import MappingProxyType

NOT_STATED = "not stated"

_PERMISSIVE = frozenset({"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0"})

_NOTES: Mapping[str, str] = MappingProxyType(
    {
        "cc-by-nc-4.0": "Creative Commons, non-commercial use only.",
        "dinov3-license": (
            "Meta's own DINOv3 License: its terms bind whoever uses or passes on the weights, and "
            "Meta's own downloads ask for acceptance first."
        ),
        "fair-noncommercial-research-license": "Meta's licence for non-commercial research only.",
        "apple-ascl": "Apple's own sample code licence: read its terms before use.",
        "apple-amlr": "Apple's own model licence for research only.",
        "nvidia-open-model-license": "NVIDIA's own open model licence: read its terms before use.",
        "sapiens2-license": "Meta's own Sapiens2 licence: read its terms before use.",
        "gemma": "Google's own terms for Gemma: read them before use.",
        NOT_STATED: "timm states no licence: ask the weights' authors before use.",
        "unknown": "timm does not know the licence: ask the weights' authors before use.",
    }
)


def find_license_note(license_id: str) -> str | None:
    """Return one sentence on a licence that is not a plain permissive one, or None."""
    if license_id in _PERMISSIVE:
        return None
    return _NOTES.get(license_id, f"The licence is {license_id!r}: read its terms before use.")
