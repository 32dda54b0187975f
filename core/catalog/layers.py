"""Which block of one network stands beside which of another."""


def match_layer(layer: int, depth: int, other_depth: int) -> int:
    """Return the block of a network of `other_depth` blocks at the same share of the depth.

    The last block of one is matched with the last of the other; from depth 12 to 24, l meets 2l+1.

    Args:
        layer: from 0.
        depth: blocks of its network.
        other_depth: blocks of the other.
    """
    return max(0, round((layer + 1) * other_depth / depth) - 1)
