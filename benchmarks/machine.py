"""What a reader of a row has to know of the machine, as figures of two cannot be compared."""

import os
import platform
from pathlib import Path

#: What multiplies bf16, the fastest first, by its name among the flags of /proc/cpuinfo.
_MULTIPLIERS = ("amx_bf16", "avx512_bf16")


def describe_machine() -> dict[str, str | int | None]:
    """Return cores, architecture, the processor's name and what it multiplies bf16 with, if any.

    The last two are None where there is no /proc/cpuinfo.
    """
    facts = _read_cpuinfo()
    flags = facts.get("flags", "").split()
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "processor": facts.get("model name"),
        "multiplies_bf16": next((name for name in _MULTIPLIERS if name in flags), None),
    }


def _read_cpuinfo() -> dict[str, str]:
    """Return the lines of the first processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
