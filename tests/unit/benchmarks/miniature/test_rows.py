"""The results file survives killed writers, and several at once."""

import json
import multiprocessing

import pytest

from benchmarks.miniature.rows import append_row, read_rows
from core.errors import InvalidError


def append_many(path, writer):
    for number in range(50):
        append_row(path, {"writer": writer, "number": number, "filling": "x" * 5000})


class TestRows:
    def test_gives_back_what_was_appended(self, tmp_path):
        path = tmp_path / "new folder" / "rows.jsonl"
        append_row(path, {"a": 1})
        append_row(path, {"b": "ä\n"})

        assert read_rows(path) == [{"a": 1}, {"b": "ä\n"}]

    def test_there_is_nothing_without_a_file(self, tmp_path):
        assert read_rows(tmp_path / "none.jsonl") == []

    @pytest.mark.parametrize("torn", ['{"b": 2', '{"b": 2}', '{"b": "ä'])
    def test_a_torn_last_line_is_left_out_and_then_replaced(self, tmp_path, torn):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b'{"a": 1}\n' + torn.encode())
        assert read_rows(path) == [{"a": 1}]

        append_row(path, {"c": 3})

        assert path.read_text() == '{"a": 1}\n{"c": 3}\n'

    def test_a_line_torn_inside_a_character_is_left_out(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(b'{"a": 1}\n{"b": "' + "ä".encode()[:1])

        assert read_rows(path) == [{"a": 1}]

    @pytest.mark.parametrize("line", ["nonsense", "[1]", ""])
    def test_another_broken_line_is_named(self, tmp_path, line):
        path = tmp_path / "rows.jsonl"
        path.write_text(f'{{"a": 1}}\n{line}\n{{"c": 3}}\n')

        with pytest.raises(InvalidError, match="line 2"):
            read_rows(path)

    def test_figures_that_are_no_numbers_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="JSON"):
            append_row(tmp_path / "rows.jsonl", {"val": float("nan")})

    def test_processes_append_side_by_side(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        context = multiprocessing.get_context("spawn")
        writers = [context.Process(target=append_many, args=(path, n)) for n in range(3)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()

        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert sorted((row["writer"], row["number"]) for row in rows) == [
            (writer, number) for writer in range(3) for number in range(50)
        ]
