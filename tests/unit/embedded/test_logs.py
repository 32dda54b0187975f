from embedded import logs
from embedded.logs import ChildLog


def append(log, text):
    with log.open_for_child() as file:
        file.write(text.encode())


class TestChildLog:
    def test_reads_each_complete_line_once(self, tmp_path):
        log = ChildLog(tmp_path / "logs" / "api.log")
        append(log, "one\ntw")

        assert log.read_lines() == ["one"]
        append(log, "o\n")
        assert log.read_lines() == ["two"]
        assert log.read_lines() == []

    def test_does_not_repeat_what_an_earlier_stack_wrote(self, tmp_path):
        append(ChildLog(tmp_path / "api.log"), "old\n")

        log = ChildLog(tmp_path / "api.log")
        append(log, "new\n")

        assert log.read_lines() == ["new"]
        assert log.read_tail(5) == ["old", "new"]

    def test_tail_is_short_and_survives_bytes_that_are_no_text(self, tmp_path):
        log = ChildLog(tmp_path / "api.log")
        with log.open_for_child() as file:
            file.write(b"1\n2\n\xff3\n")

        assert log.read_tail(2) == ["2", "\ufffd3"]

    def test_puts_an_overgrown_file_aside(self, tmp_path, monkeypatch):
        monkeypatch.setattr(logs, "_ROTATE_BYTES", 4)
        append(ChildLog(tmp_path / "api.log"), "too long\n")

        log = ChildLog(tmp_path / "api.log")

        assert log.read_tail(5) == []
        assert (tmp_path / "api.log.1").read_text() == "too long\n"
