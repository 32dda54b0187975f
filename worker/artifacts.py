"""After training: the evaluation and the figures of a run, as files beside the exported model.

out/evaluation.json        always
out/figures/NAME.json      for every figure that was asked for
out/figures/NAME.png       likewise, where it could be drawn
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.catalog.figures import EVALUATION_FILE, FIGURES_DIR, FigureName, FigureStatus
from core.clock import monotonic_s
from core.ml.adapters.adapted import AdaptedModel
from core.ml.analysis.evaluation import build_evaluation
from core.ml.analysis.figures.registry import build_figure
from core.ml.analysis.inputs import AnalysisInputs, Role
from core.ml.data.manifest import Manifest
from core.ml.training.loop import TrainResult
from core.ml.training.run_state import EpochMetrics
from worker.build import Training
from worker.child import PROGRESS_INTERVAL_S, send


class _Progress:
    """Says what is being worked on: a silent trainer would be killed."""

    def __init__(self, result: TrainResult) -> None:
        # Where training ended stays in the job's progress.
        self._ended = {
            "epoch": len(result.history),
            "total_epochs": len(result.history),
            "step": result.steps,
            "total_steps": result.steps,
            "percent": 100.0,
        }
        self._phase = "evaluating"
        self._figure: dict[str, str] = {}
        self._sent_s = 0.0

    def begin(self, phase: str, figure: str | None = None) -> None:
        """Say that a part of the work begins."""
        self._phase = phase
        self._figure = {} if figure is None else {"figure": figure}
        self._send({})

    def __call__(self, what: str, done: int, total: int) -> None:
        """Say how far a part is, at most twice a second."""
        if monotonic_s() - self._sent_s >= PROGRESS_INTERVAL_S:
            self._send({"doing": what, "done": done, "of": total})

    def _send(self, details: dict[str, Any]) -> None:
        self._sent_s = monotonic_s()
        where = {**self._ended, **self._figure, **details}
        send({"type": "progress", "phase": self._phase, **where})


def write_artifacts(
    out: Path,
    *,
    training: Training,
    result: TrainResult,
    baseline: TrainResult | None,
    manifest: Manifest,
    figures: list[dict[str, Any]],
    seed: int,
) -> None:
    """Measure and draw what came out of a job; the same run writes the same bytes.

    A figure that cannot be made is said so in its JSON file and in the job's events, and fails
    nothing. A model that cannot be evaluated is a bug, and does.

    Args:
        out: made if it is not there.
        training: what the run was started with.
        result: the main run.
        baseline: the student trained without a teacher; None if that was not asked for.
        manifest: names of the images.
        figures: those asked for, each a `name` with its options.
        seed: of the main run.
    """
    out.mkdir(exist_ok=True)
    progress = _Progress(result)
    inputs = AnalysisInputs(
        models=_collect_models(result, baseline),
        data=training.data,
        manifest=manifest,
        histories=_collect_histories(result, baseline),
        best_epoch=result.best_epoch,
        seed=seed,
        on_progress=progress,
    )
    progress.begin("evaluating")
    evaluation = json.dumps(build_evaluation(inputs), ensure_ascii=False, allow_nan=False)
    (out / EVALUATION_FILE).write_text(evaluation + "\n", encoding="utf-8")
    (out / FIGURES_DIR).mkdir(exist_ok=True)
    for wanted in figures:
        name = FigureName(wanted["name"])
        progress.begin("drawing", name.value)
        options = {option: value for option, value in wanted.items() if option != "name"}
        built = build_figure(name, inputs, options)
        stem = out / FIGURES_DIR / name.value
        stem.with_suffix(".json").write_bytes(built.document)
        if built.png is not None:
            stem.with_suffix(".png").write_bytes(built.png)
        if built.status is not FigureStatus.READY:
            _report(name, built.status, built.reason)


def _collect_models(result: TrainResult, baseline: TrainResult | None) -> dict[Role, AdaptedModel]:
    models = {
        Role.STUDENT: result.student,
        Role.TEACHER: result.teacher,
        Role.BASELINE: baseline.student if baseline is not None else None,
    }
    return {role: model for role, model in models.items() if model is not None}


def _collect_histories(
    result: TrainResult, baseline: TrainResult | None
) -> dict[Role, Sequence[EpochMetrics]]:
    histories: dict[Role, Sequence[EpochMetrics]] = {Role.STUDENT: result.history}
    if baseline is not None:
        histories[Role.BASELINE] = baseline.history
    return histories


def _report(name: FigureName, status: FigureStatus, reason: str) -> None:
    words = status.value.replace("_", " ")
    send(
        {
            "type": "log",
            "level": "warning",
            "message": f"the figure {name.value} is {words}: {reason}",
            "data": {"figure": name.value, "status": status.value},
        }
    )
