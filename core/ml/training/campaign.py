"""A job's whole work: a search for the learning rate, the run itself, its twin, further seeds.

A campaign is a sequence of runs, each decided by the plan and by what came before, so that it can
be cut anywhere and go on: a checkpoint holds the state of the run in progress and the outcome of
every run before it, and a resumed campaign ends with the same bytes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.catalog.methods import MethodType
from core.catalog.rate_search import SEARCH_FACTORS, search_epochs
from core.ml.backbones.load import LoadedBackbone
from core.ml.training.campaign_observer import (
    CampaignObserver,
    RunObserver,
    SilentCampaignObserver,
    Stage,
)
from core.ml.training.campaign_state import CampaignCheckpoints, Outcome, RunOutcome
from core.ml.training.campaign_summary import gain_over_baseline, spread_over_seeds
from core.ml.training.loop import CollapsedError, DivergedError, TrainResult, train
from core.ml.training.plan import TrainPlan
from core.ml.training.resident import ResidentData

#: What a run that diverged or collapsed is repeated with, at most so many times.
RETRY_FACTOR = 10**-0.5
MAX_RETRIES = 3
_WARMUP_SHARE = 10


@dataclass(frozen=True, kw_only=True)
class CampaignPlan:
    """What a job asks for beside a single run.

    Attributes:
        plan: the run; its learning rate is the search's middle if there is a search.
        search: whether the learning rate is searched for on the validation split, and a run that
            diverges or collapses is repeated with a lower one.
        compare_baseline: whether the student is also trained alone, on the same batches.
        seeds: how many times all of it is done, with the seeds `plan.seed`, `plan.seed + 1`, …
    """

    plan: TrainPlan
    search: bool = False
    compare_baseline: bool = False
    seeds: int = 1

    def fingerprint(self, *parts: str) -> str:
        """Return a SHA-256 (hex) of the plan and of `parts`, the names of what it is run on."""
        text = json.dumps([dataclasses.asdict(self), list(parts)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class CampaignResult:
    """What a finished campaign leaves.

    Attributes:
        main: the run whose student is exported.
        baseline: the student trained alone with the same seed; None if not asked for.
        plan: of the main run, with the learning rate that it was trained with.
        summary: search, retries, twin and seeds as JSON values, for the model's metrics.
    """

    main: TrainResult
    baseline: TrainResult | None
    plan: TrainPlan
    summary: Mapping[str, Any]


def run_campaign(
    campaign: CampaignPlan,
    data: ResidentData,
    *,
    student: LoadedBackbone,
    teacher: LoadedBackbone | None,
    device: torch.device,
    observer: CampaignObserver | None = None,
    checkpoint_dir: Path | None = None,
    micro_batch: int | None = None,
) -> CampaignResult:
    """Do all runs of a campaign, from the newest checkpoint if there is one.

    The search tries the plan's learning rate times 0.1, 0.32, 1 and 3.2, each for a tenth of the
    epochs (three at least), and takes the one with the best validation accuracy (among equals the
    lower validation loss). It never looks at the test split. The twin has a search of its own: a
    rate that suits two networks may ruin one alone, and a gain over a ruined twin is none.

    Args:
        campaign: what to do.
        data: as for `core.ml.training.loop.train`.
        student: likewise.
        teacher: likewise.
        device: likewise.
        observer: watches and may interrupt.
        checkpoint_dir: where checkpoints are kept; None keeps none.
        micro_batch: as for `core.ml.training.loop.train`.

    Raises:
        DivergedError: a run diverged, and without a search, or after three retries.
        TrainingStoppedError: the observer asked for it.
        CheckpointMismatchError: the folder holds another campaign.
        InvalidError: plan, data and backbones do not belong together.
    """
    runner = _Runner(
        campaign,
        data,
        student=student,
        teacher=teacher,
        device=device,
        observer=observer or SilentCampaignObserver(),
        checkpoint_dir=checkpoint_dir,
        micro_batch=micro_batch,
    )
    return runner.to_end()


class _Runner:
    """One call of `run_campaign`."""

    def __init__(
        self,
        campaign: CampaignPlan,
        data: ResidentData,
        *,
        student: LoadedBackbone,
        teacher: LoadedBackbone | None,
        device: torch.device,
        observer: CampaignObserver,
        checkpoint_dir: Path | None,
        micro_batch: int | None,
    ) -> None:
        self._micro_batch = micro_batch
        self._campaign, self._data, self._device = campaign, data, device
        self._student, self._teacher = student, teacher
        self._observer = observer
        names = [b.weights_sha256 for b in (student, teacher) if b is not None]
        fingerprint = campaign.fingerprint(data.fingerprint, *names)
        self._checkpoints = CampaignCheckpoints(checkpoint_dir, fingerprint)
        self._planned_steps = self._plan_steps()
        self._summary: dict[str, Any] = {}

    def _plan_steps(self) -> int:
        """Return how many steps there will be if nothing has to be repeated."""
        campaign, plan = self._campaign, self._campaign.plan
        per_epoch = plan.steps_per_epoch(len(self._data.train))
        has_twin = campaign.compare_baseline and self._teacher is not None
        runs = (1 + has_twin) * campaign.seeds * plan.total_epochs
        searches = 0
        if campaign.search and self._data.val is not None:
            searches = (1 + has_twin) * len(SEARCH_FACTORS) * search_epochs(plan.epochs)
        return per_epoch * (runs + searches)

    def to_end(self) -> CampaignResult:
        campaign = self._campaign
        plan = self._find_rate(campaign.plan, "run")
        first = self._run_guarded(plan, "run", is_main=True)
        runs = [self._show(first)]
        twin_plan = twin = None
        if campaign.compare_baseline and self._teacher is not None:
            alone = dataclasses.replace(campaign.plan, method=MethodType.ADAPTER)
            twin_plan = self._find_rate(alone, "baseline")
            twin = self._run_guarded(twin_plan, "baseline")
            runs[0]["baseline"] = self._show(twin)
        for offset in range(1, campaign.seeds):
            seed = campaign.plan.seed + offset
            name = f"seed {seed}"
            again = dataclasses.replace(self._plan_of(plan, first), seed=seed)
            runs.append(self._show(self._run_guarded(again, f"{name} run")))
            if twin_plan is not None and twin is not None:
                again = dataclasses.replace(self._plan_of(twin_plan, twin), seed=seed)
                runs[-1]["baseline"] = self._show(self._run_guarded(again, f"{name} baseline"))
        if twin is not None:
            self._summary["baseline"] = runs[0]["baseline"] | {"gain": gain_over_baseline(runs[0])}
        if campaign.seeds > 1:
            self._summary["seeds"] = {"runs": runs, **spread_over_seeds(runs)}
        self._summary["learning_rate"] = first.learning_rate
        final = self._plan_of(plan, first)
        return CampaignResult(
            main=first.rebuild(final, self._student, self._teacher),
            baseline=None
            if twin is None or twin_plan is None
            else twin.rebuild(self._plan_of(twin_plan, twin), self._student, None),
            plan=final,
            summary=self._summary,
        )

    def _find_rate(self, plan: TrainPlan, name: str) -> TrainPlan:
        """Return the plan with the learning rate that does best in short runs."""
        if not self._campaign.search:
            return plan
        if self._data.val is None:
            self._observer.on_note(
                "no validation split to search a learning rate on; the default is taken",
                {"learning_rate": plan.learning_rate},
            )
            return plan
        epochs = search_epochs(plan.epochs)
        tried: list[dict[str, Any]] = []
        for factor in SEARCH_FACTORS:
            short = dataclasses.replace(
                plan,
                learning_rate=min(plan.learning_rate * factor, 1.0),
                epochs=epochs,
                warmup_epochs=min(plan.warmup_epochs, epochs // _WARMUP_SHARE),
                cooldown_epochs=0,
            )
            outcome = self._run_once(short, f"{name} search {len(tried) + 1}", test=False)
            val = outcome.val
            tried.append(
                {
                    "learning_rate": short.learning_rate,
                    "outcome": outcome.outcome.value,
                    "val_accuracy": val and val.accuracy,
                    "val_loss": val and val.loss,
                }
            )
        # Equal in accuracy and loss only where nothing was learnt: then the lower rate.
        best = max(
            tried,
            key=lambda row: (
                row["outcome"] == Outcome.DONE,
                -1.0 if row["val_accuracy"] is None else row["val_accuracy"],
                float("-inf") if row["val_loss"] is None else -row["val_loss"],
                -row["learning_rate"],
            ),
        )
        chosen = best["learning_rate"]
        found = {"epochs": epochs, "candidates": tried, "chosen": chosen}
        self._summary.setdefault("learning_rate_search", {})[name] = found
        self._observer.on_note(f"learning rate {chosen:.3g} chosen for the {name}", found)
        return dataclasses.replace(plan, learning_rate=chosen)

    def _run_guarded(self, plan: TrainPlan, name: str, *, is_main: bool = False) -> RunOutcome:
        """Run; after a divergence or a collapse again with a lower rate, if rates are free."""
        if not self._campaign.search:
            outcome = self._run_once(plan, name, is_main=is_main, keep=True)
            outcome.raise_if_diverged()
            if outcome.collapsed_epoch is not None:
                self._note_collapse(outcome, name)
            return outcome
        for retry in range(MAX_RETRIES + 1):
            is_last = retry == MAX_RETRIES
            outcome = self._run_once(
                plan,
                name if retry == 0 else f"{name}, retry {retry}",
                is_main=is_main,
                keep=True,
                stop_on_collapse=not is_last,
            )
            if outcome.outcome is Outcome.DONE:
                break
            if is_last:
                outcome.raise_if_diverged()
            rate = plan.learning_rate * RETRY_FACTOR
            data = {"outcome": outcome.outcome.value, "learning_rate": plan.learning_rate}
            self._summary.setdefault("retries", []).append({"run": name, **data})
            self._observer.on_note(
                f"the {name} {outcome.outcome.value} at learning rate {plan.learning_rate:.3g}; "
                f"again with {rate:.3g}",
                data,
            )
            plan = dataclasses.replace(plan, learning_rate=rate)
        if outcome.collapsed_epoch is not None:
            self._note_collapse(outcome, name)
        return outcome

    def _note_collapse(self, outcome: RunOutcome, name: str) -> None:
        assert outcome.collapsed_epoch is not None
        self._observer.on_note(
            f"the {name} had stopped learning by epoch {outcome.collapsed_epoch + 1}: lower "
            f"learning_rate (now {outcome.learning_rate:.3g}) or ask for 'auto'",
            {"epoch": outcome.collapsed_epoch + 1},
        )

    def _run_once(
        self,
        plan: TrainPlan,
        name: str,
        *,
        is_main: bool = False,
        keep: bool = False,
        test: bool = True,
        stop_on_collapse: bool = False,
    ) -> RunOutcome:
        """Return the outcome of one run, from the checkpoint if it is over already."""
        known = self._checkpoints.find_outcome(name)
        if known is not None:
            return known
        steps_per_epoch = plan.steps_per_epoch(len(self._data.train))
        before = self._checkpoints.steps_done
        self._observer.on_stage(Stage(name, is_main, before, steps_per_epoch, plan.total_epochs))
        total = max(self._planned_steps, before + steps_per_epoch * plan.total_epochs)
        observer = RunObserver(
            self._observer, before, total, step=self._checkpoints.resumed_step(name)
        )
        data = self._data if test else dataclasses.replace(self._data, test=None)
        with_teacher = plan.method is MethodType.IDAT
        try:
            result = train(
                plan,
                data,
                student=self._student,
                teacher=self._teacher if with_teacher else None,
                device=self._device,
                observer=observer,
                checkpoints=self._checkpoints.of_run(name),
                stop_on_collapse=stop_on_collapse,
                micro_batch=self._micro_batch,
            )
        except CollapsedError as error:
            outcome = RunOutcome.failed(Outcome.COLLAPSED, plan, error, steps=observer.step)
        except DivergedError as error:
            outcome = RunOutcome.failed(Outcome.DIVERGED, plan, error, steps=observer.step)
        else:
            outcome = RunOutcome.of(plan, result, keep_weights=keep)
        self._checkpoints.finish_run(name, outcome)
        return outcome

    @staticmethod
    def _plan_of(plan: TrainPlan, outcome: RunOutcome) -> TrainPlan:
        return dataclasses.replace(plan, learning_rate=outcome.learning_rate)

    @staticmethod
    def _show(outcome: RunOutcome) -> dict[str, Any]:
        return outcome.to_summary()
