"""How a learning rate is searched for: what is tried, and for how long."""

#: Multiples of the default learning rate that are tried, a factor of √10 apart.
SEARCH_FACTORS = (10**-1.0, 10**-0.5, 1.0, 10**0.5)

_SHARE = 10
_FEWEST_EPOCHS = 3


def search_epochs(epochs: int) -> int:
    """Return how many epochs every candidate of a run of `epochs` epochs gets."""
    return min(epochs, max(_FEWEST_EPOCHS, round(epochs / _SHARE)))
