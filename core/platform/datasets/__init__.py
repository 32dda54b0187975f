"""Datasets: from uploaded bytes to rows that name an immutable set of images."""

#: Largest share of undecodable images that an upload may ask to leave out: beyond it, what is left
#: is another dataset.
MAX_TOLERANCE = 0.5
