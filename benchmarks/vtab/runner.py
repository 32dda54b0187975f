"""Fill the table in this process: for each dataset, method and seed that has no row yet."""

import fcntl
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.vtab.dataset import Dataset
from benchmarks.vtab.images import ImageStore
from benchmarks.vtab.learners import AdapterLearner, Learner, Workplace
from benchmarks.vtab.lists import ListName
from benchmarks.vtab.methods import Method
from benchmarks.vtab.probe import ProbeLearner
from benchmarks.vtab.protocols import OK, Cell, build_protocol
from benchmarks.vtab.results import ResultsFile
from benchmarks.vtab.settings import Machine, Settings
from benchmarks.vtab.watch import Console, StopSignal, describe_seconds
from core.clock import monotonic_s, now_s
from core.errors import ConflictError, InvalidError
from core.ml.backbones.load import LoadedBackbone, load_backbone
from core.ml.backbones.precision import resolve_device, resolve_precision

IN_PROCESS = "in-process"
_LIBRARIES = ("torch", "timm", "numpy", "pillow")
_ROOT = Path(__file__).parents[2]


class Runner:
    """Computes rows in this process."""

    def __init__(
        self, settings: Settings, machine: Machine, *, stop: StopSignal, console: Console
    ) -> None:
        """Look at the machine; nothing is loaded yet.

        Raises:
            InvalidError: it has no such device.
        """
        self._settings, self._machine = settings, machine
        self._stop, self._console = stop, console
        self._device = _find_device(machine.device)
        self._precision = resolve_precision(settings.precision, self._device)
        self._loaded: dict[str, LoadedBackbone] = {}

    def run(
        self,
        datasets: Sequence[Dataset],
        methods: Sequence[Method],
        seeds: Sequence[int],
        results: ResultsFile,
    ) -> int:
        """Compute every row that is not there yet; return how many were computed.

        Raises:
            InvalidError: a setting is out of range, or images cannot be read.
            UnavailableError: weights are not there.
            TrainingStoppedError: that was asked for; rows that are done are in the file.
        """
        missing = [
            (dataset, cell, key)
            for dataset in datasets
            for cell in build_cells(dataset, methods, seeds)
            if results.find(key := self._build_key(dataset, cell)) is None
        ]
        for dataset, cell, _ in missing:
            self._check(dataset, cell)
        total = len(datasets) * len(methods) * len(seeds)
        self._console.say(
            f"{total} rows, {total - len(missing)} of them in {results.path} already; on "
            f"{self._device} in {self._precision.value}"
        )
        with hold(self._machine.work_dir):
            store = ImageStore(
                self._machine.work_dir / "images", stop=self._stop, console=self._console
            )
            done, started_s = 0, monotonic_s()
            for dataset in datasets:
                todo = [(cell, key) for of, cell, key in missing if of is dataset]
                for line in self._run_dataset(dataset, todo, store, results):
                    done += 1
                    left_s = (monotonic_s() - started_s) / done * (len(missing) - done)
                    left = f"; about {describe_seconds(left_s)} for the rest" if left_s else ""
                    self._console.say(f"[{done}/{len(missing)}] {line}{left}")
                if not self._machine.keep_images:
                    store.drop(dataset)
        return len(missing)

    def _check(self, dataset: Dataset, cell: Cell) -> None:
        """Refuse settings that are out of range before hours are spent on other rows.

        Raises:
            InvalidError: a plan cannot be built, or has no full batch.
        """
        plan = self._settings.build_plan(
            cell.method,
            cell.recipe,
            num_classes=cell.num_classes,
            learning_rate=cell.recipe.learning_rate,
            seed=cell.seed,
            precision=self._precision,
        )
        trained = min(
            len(dataset.lists[name].entries) for name in (ListName.TRAIN, ListName.TRAIN_VAL)
        )
        plan.steps_per_epoch(trained)

    def _run_dataset(
        self,
        dataset: Dataset,
        todo: Sequence[tuple[Cell, dict[str, Any]]],
        store: ImageStore,
        results: ResultsFile,
    ) -> Iterator[str]:
        """Compute the rows of one dataset; yield a line about each when it is in the file."""
        place = Workplace(
            dataset=dataset,
            store=store,
            device=self._device,
            folder=self._machine.work_dir / "checkpoints",
            checkpoint_every_s=self._machine.checkpoint_every_s,
            stop=self._stop,
            console=self._console,
        )
        learners: dict[str, Learner] = {}
        for cell, key in todo:
            self._stop.check()
            started_s = monotonic_s()
            if cell.method.name not in learners:
                learners[cell.method.name] = self._build_learner(place, cell.method)
            protocol = build_protocol(
                cell,
                learners[cell.method.name],
                self._settings,
                self._precision,
                self._machine.work_dir / "chosen",
            )
            result = protocol.run()
            results.append(key | self._describe(dataset, cell) | result)
            protocol.forget()
            took = describe_seconds(monotonic_s() - started_s)
            yield f"{cell}: {describe_result(result)}, {took}"

    def _build_learner(self, place: Workplace, method: Method) -> Learner:
        student = self._load(self._settings.student)
        if method.kind is None:
            student.place(device=self._device, precision=self._precision)
            return ProbeLearner(place, student=student)
        teacher = self._load(self._settings.teacher) if method.has_teacher else None
        return AdapterLearner(place, student=student, teacher=teacher)

    def _build_key(self, dataset: Dataset, cell: Cell) -> dict[str, Any]:
        settings, method = self._settings, cell.method
        weights = {"student": self._load(settings.student).weights_sha256}
        if method.has_teacher:
            weights["teacher"] = self._load(settings.teacher).weights_sha256
        return {
            "dataset": cell.recipe.name,
            "method": method.name,
            "seed": cell.seed,
            "mode": settings.mode.value,
            "where": IN_PROCESS,
            "settings": settings.describe(method, self._precision.value),
            "data_digest": dataset.digest,
            "weights": weights,
        }

    def _describe(self, dataset: Dataset, cell: Cell) -> dict[str, Any]:
        """Return what else a row says about how it came to be."""
        is_cuda = self._device.type == "cuda"
        return {
            "group": cell.recipe.group.value,
            "num_classes": cell.num_classes,
            "data": dataset.describe(),
            "device": torch.cuda.get_device_name(self._device) if is_cuda else "cpu",
            "threads": torch.get_num_threads(),
            "versions": find_versions(),
            "finished_at": round(now_s()),
        }

    def _load(self, name: str) -> LoadedBackbone:
        """Return a network, loaded once."""
        if name not in self._loaded:
            self._console.say(f"loading {name}")
            self._loaded[name] = load_backbone(name, weights_dir=self._machine.weights_dir)
        return self._loaded[name]


def build_cells(
    dataset: Dataset, methods: Iterable[Method], seeds: Iterable[int]
) -> Iterator[Cell]:
    """Return the cells of one dataset; a method's seeds come together and share what was chosen."""
    for method in methods:
        for seed in seeds:
            yield Cell(dataset.recipe, method, seed, dataset.num_classes)


def describe_result(result: dict[str, Any]) -> str:
    """Return a row's result for people."""
    test = result["test"]
    if result["status"] != OK:
        return f"{result['status']}: {result['error']}"
    line = f"test {test['accuracy']:.2%} at rate {result['learning_rate']:g}"
    if "best_on_test_accuracy" in test:
        line += f" after the last epoch ({test['best_on_test_accuracy']:.2%} best on test)"
    return line


def _find_device(name: str) -> torch.device:
    try:
        device = resolve_device(name)
    except RuntimeError as error:
        raise InvalidError(
            f"there is no device {name!r}; allowed: auto, cpu, cuda, cuda:N"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidError(f"torch sees no device {name!r} here; --device cpu computes without it")
    return device


def find_versions() -> dict[str, str]:
    """Return the versions of what a result depends on; the code's is its commit, if it has one."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), "code": _find_commit(), **versions}


def _find_commit() -> str:
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


@contextmanager
def hold(work_dir: Path) -> Iterator[None]:
    """Keep the work folder for this process, for as long as the block lasts.

    Raises:
        ConflictError: another run has it.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                f"another run works in {work_dir}; wait for it, or name another with --work-dir"
            ) from error
        yield
