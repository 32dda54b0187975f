"""Images as arrays: decode, resize, split, record, cache."""
