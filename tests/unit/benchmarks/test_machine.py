"""What rows say of the machine."""

import json
from pathlib import Path

import pytest

from benchmarks import machine
from benchmarks.machine import describe_machine

CPUINFO = """processor\t: 0
model name\t: Some CPU @ 2.10GHz
flags\t\t: fpu avx2 {flags}

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("avx512_bf16 amx_bf16 amx_tile", "amx_bf16"),
        ("avx512f avx512_bf16", "avx512_bf16"),
        ("avx512f", None),
    ],
)
def test_the_first_processor_counts(monkeypatch, flags, expected):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: CPUINFO.format(flags=flags))
    described = describe_machine()
    assert described["processor"] == "Some CPU @ 2.10GHz"
    assert described["multiplies_bf16"] == expected
    json.dumps(described)


def test_where_there_is_no_cpuinfo(monkeypatch):
    def refuse(*_, **__):
        raise FileNotFoundError("/proc/cpuinfo")

    monkeypatch.setattr(Path, "read_text", refuse)
    assert machine.describe_machine()["processor"] is None
