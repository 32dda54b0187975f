"""A run of the benchmark that is killed in a step: `killed_run.py STEP ARGUMENTS`.

STEP counts over all training runs of the process. Every step before it left a checkpoint.
"""

import importlib.util
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

from benchmarks.vtab.__main__ import main
from benchmarks.vtab.watch import RunWatcher


class Doomed:
    steps = 0

    @classmethod
    def on_step(cls, step, total_steps):
        cls.steps += 1
        if cls.steps == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)


def load_expected():
    spec = importlib.util.spec_from_file_location(
        "folders", Path(__file__).with_name("conftest.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EXPECTED


if __name__ == "__main__":
    RunWatcher.on_step = lambda _self, step, total_steps: Doomed.on_step(step, total_steps)
    sys.exit(main(sys.argv[2:], expected=load_expected()))
