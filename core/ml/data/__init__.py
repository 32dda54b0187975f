"""Images as arrays: decode, resize, split, record, cache.

numpy and Pillow only: nothing here loads torch, so that the intake process starts fast.
"""
