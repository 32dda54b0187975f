"""Whether this process still takes requests, or is about to leave."""


class Lifecycle:
    """Set once, by the signal that ends the process; read by every request."""

    def __init__(self) -> None:
        self._is_draining = False

    @property
    def is_draining(self) -> bool:
        """Whether new work is sent elsewhere, while what has been accepted is finished."""
        return self._is_draining

    def drain(self) -> None:
        """Begin to leave: readiness says so, and inference is refused, from now on."""
        self._is_draining = True
