"""The VTAB runner fills its table through a real service."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.vtab.__main__ import main
from tests.e2e.stack import Stack

FOLDERS = Path(__file__).parents[1] / "unit" / "benchmarks" / "vtab" / "conftest.py"


@pytest.fixture
def working_stack(tmp_path: Path) -> Iterator[Stack]:
    """An embedded stack with a worker."""
    stack = Stack(tmp_path)
    try:
        stack.start()
        stack.spawn("worker")
        yield stack
    finally:
        stack.stop()


@pytest.mark.slow
def test_rows_come_from_jobs_and_come_once(working_stack: Stack, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("vtab_folders", FOLDERS)
    assert spec is not None
    assert spec.loader is not None
    folders = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(folders)
    root = folders.build_folder(tmp_path / "vtab", "vtab-kitti")
    out = tmp_path / "results.jsonl"
    url = str(working_stack.client.base_url)
    arguments = [
        *("run", str(root), "--datasets", "kitti", "--out", str(out), "--service", url),
        *("--methods", "linear_probe", "iDAT-P-mse", "--seeds", "3", *folders.FAST),
    ]
    assert main(arguments, expected=folders.EXPECTED) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["method"] for row in rows] == ["linear_probe", "iDAT-P-mse"]
    for row in rows:
        assert row["test"]["images"] == 20
        assert row["test"]["accuracy"] in [k / 20 for k in range(21)]
        assert row["classes_in_service"] == folders.CLASSES
        assert row["precision_used"] == "fp32"
        assert row["epochs_run"] == 2
    student, teacher = rows[1]["weights_used"]["student"], rows[1]["weights_used"]["teacher"]
    assert rows[0]["weights_used"]["student"] == student != teacher

    # With the rows lost, but not the memory of what was submitted, no job is run again.
    out.unlink()
    assert main(arguments, expected=folders.EXPECTED) == 0
    again = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["service"] for row in again] == [row["service"] for row in rows]
    assert len(working_stack.get("/v1/fine_tuning/jobs")["data"]) == 2
    assert len(working_stack.get("/v1/datasets")["data"]) == 1
