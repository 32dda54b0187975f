"""The benchmark in miniature: `python -m benchmarks.miniature --help`; see docs/miniature.md."""
