"""VTAB-1k on a folder that the user has: check it, run the methods, print the table.

`python -m benchmarks.vtab check|run|table`; see docs/vtab.md.
"""
