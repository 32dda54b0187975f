"""What the runs of a campaign say together: the gain over the twin, mean and deviation."""

import statistics
from collections.abc import Mapping
from typing import Any


def gain_over_baseline(run: Mapping[str, Any]) -> dict[str, float | None]:
    """Return accuracy minus the twin's, signed, as shares; None where one was not measured."""
    twin = run["baseline"]
    return {
        split: None if None in pair else pair[0] - pair[1]
        for split in ("val", "test")
        for pair in [(run[f"{split}_accuracy"], twin[f"{split}_accuracy"])]
    }


def spread_over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and sample standard deviation over the seeds, of accuracies and gains."""
    rows: dict[str, list[float | None]] = {
        name: [run[name] for run in runs]
        for name in (
            "val_accuracy",
            "test_accuracy",
            "teacher_val_accuracy",
            "teacher_test_accuracy",
        )
    }
    if all("baseline" in run for run in runs):
        for split in ("val", "test"):
            rows[f"baseline_{split}_accuracy"] = [
                run["baseline"][f"{split}_accuracy"] for run in runs
            ]
            rows[f"{split}_gain"] = [gain_over_baseline(run)[split] for run in runs]
    spread = {}
    for name, values in rows.items():
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            spread[name] = {"mean": statistics.mean(known), "std": statistics.stdev(known)}
    return spread
