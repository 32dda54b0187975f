"""The runs of the main table."""

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.miniature.jobs import MEASUREMENT, Job, build_settings
from benchmarks.miniature.methods import Method
from benchmarks.miniature.suite import Size


def list_table_jobs(
    tasks: Sequence[str],
    methods: Sequence[Method],
    seeds: Sequence[int],
    rates: Mapping[str, float],
    size: Size,
) -> Iterator[Job]:
    """Yield one run for every cell and seed; whole seeds first, so that a part is balanced."""
    for seed in seeds:
        for task in tasks:
            for method in methods:
                yield build_table_job(task, method, seed, rates, size)


def build_table_job(
    task: str, method: Method, seed: int, rates: Mapping[str, float], size: Size
) -> Job:
    """Return the run of one cell and seed.

    A plain run and the iDAT runs of its placement have the seed in common, and with it the images,
    the student's initial adapters and head, and the order of the images.
    """
    rate = None if method.placement is None else rates[method.placement]
    settings = build_settings(method, size, learning_rate=rate)
    return Job(MEASUREMENT, task, method.name, seed, settings)
