"""The results file survives a cut, two writers, and files that are something else."""

import json

import pytest

from benchmarks.vtab.results import ResultsError, ResultsFile, read_results
from core.errors import ConflictError


def build_key(**changes):
    return {
        "dataset": "vtab-dtd",
        "method": "S",
        "seed": 1,
        "mode": "strict",
        "where": "in-process",
        "settings": {"rates": (0.1, 0.2)},
        "data_digest": "d",
        "weights": {"student": "w"},
        **changes,
    }


class TestResultsFile:
    def test_keeps_rows(self, tmp_path):
        path = tmp_path / "new" / "results.jsonl"
        with ResultsFile(path) as results:
            assert results.find(build_key()) is None
            results.append(build_key() | {"test": {"accuracy": 0.5}})
            assert results.find(build_key())["test"] == {"accuracy": 0.5}
        with ResultsFile(path) as results:
            # The tuple of the settings came back as a list; it is the same key.
            assert results.find(build_key())["test"] == {"accuracy": 0.5}
            results.append(build_key(seed=2))
        assert [row["seed"] for row in read_results([path])] == [1, 2]

    @pytest.mark.parametrize(
        "change",
        [
            {"seed": 2},
            {"mode": "paper"},
            {"where": "service"},
            {"settings": {"rates": [0.1]}},
            {"data_digest": "e"},
            {"weights": {"student": "v"}},
        ],
    )
    def test_everything_in_the_key_counts(self, tmp_path, change):
        with ResultsFile(tmp_path / "results.jsonl") as results:
            results.append(build_key())
            assert results.find(build_key(**change)) is None

    def test_a_half_written_line_is_removed(self, tmp_path):
        path = tmp_path / "results.jsonl"
        with ResultsFile(path) as results:
            results.append(build_key())
        whole = path.read_bytes()
        path.write_bytes(whole + whole[:40])
        assert len(read_results([path])) == 1
        with ResultsFile(path) as results:
            assert len(results.rows) == 1
            results.append(build_key(seed=2))
        assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == [1, 2]

    def test_one_writer(self, tmp_path):
        path = tmp_path / "results.jsonl"
        with (
            ResultsFile(path),
            pytest.raises(ConflictError, match="another run is writing"),
            ResultsFile(path),
        ):
            pass
        with ResultsFile(path):
            pass

    @pytest.mark.parametrize("text", ["{}\n", "[1]\n", "nonsense\n", '{"format": 1}\n'])
    def test_another_file_is_left_alone(self, tmp_path, text):
        path = tmp_path / "results.jsonl"
        path.write_text(text)
        with pytest.raises(ResultsError, match=r"results\.jsonl:1 is not a result"):
            ResultsFile(path).__enter__()
        with pytest.raises(ResultsError):
            read_results([path])
        assert path.read_text() == text

    def test_no_such_file(self, tmp_path):
        with pytest.raises(ResultsError, match="cannot be read: No such file"):
            read_results([tmp_path / "none.jsonl"])

    def test_no_number_that_is_none(self, tmp_path):
        with ResultsFile(tmp_path / "results.jsonl") as results, pytest.raises(ValueError):
            results.append(build_key() | {"loss": float("nan")})
