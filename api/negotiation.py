"""Choosing between forms of one resource by the `Accept` header (RFC 9110, section 12.5.1)."""

from collections.abc import Sequence


def choose_media_type(accept: str, offered: Sequence[str]) -> str:
    """Return the offered media type that the caller likes best.

    The most specific range that fits a type says how well it is liked; among equals the earlier
    offer wins. A caller who likes none of them gets the first all the same, as the RFC allows: an
    answer in another form is of more use than a refusal.

    Args:
        accept: value of the header; empty likes everything.
        offered: media types, the one to prefer first.
    """
    ranges = [_parse_range(part) for part in accept.split(",") if part.strip()]
    if not ranges:
        return offered[0]
    return max(offered, key=lambda media_type: _quality(media_type, ranges))


def _parse_range(part: str) -> tuple[str, float]:
    """Return a range and its quality; parameters other than `q` are left out."""
    media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = min(max(float(value), 0.0), 1.0)
            except ValueError:
                quality = 0.0
    return media_range, quality


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    family = media_type.partition("/")[0]
    for fitting in (media_type, f"{family}/*", "*/*"):
        liked = [quality for media_range, quality in ranges if media_range == fitting]
        if liked:
            return max(liked)
    return 0.0
