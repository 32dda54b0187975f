"""A campaign: the search, the guard, the twin and the seeds, and that it can be cut anywhere."""

import dataclasses
import math
import statistics
from types import MappingProxyType

import pytest
import safetensors.torch
import torch

from core.catalog.methods import AdapterKind, MethodType
from core.ml.training.campaign import (
    CampaignPlan,
    run_campaign,
)
from core.ml.training.campaign_observer import SilentCampaignObserver
from core.ml.training.campaign_summary import gain_over_baseline
from core.ml.training.loop import DivergedError, TrainingStoppedError, train

CPU = torch.device("cpu")


class Watcher(SilentCampaignObserver):
    """Remembers what it is told, and may ask to stop after a step."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.stages, self.notes, self.steps, self.epochs = [], [], [], []

    def on_stage(self, stage):
        self.stages.append(stage)

    def on_note(self, message, data):
        self.notes.append((message, data))

    def on_step(self, step, total_steps):
        self.steps.append((step, total_steps))

    def on_epoch(self, metrics):
        self.epochs.append((self.stages[-1].name, metrics.epoch))

    def should_stop(self):
        return self.stop_after is not None and len(self.steps) >= self.stop_after


@pytest.fixture
def go(tiny_backbone, tiny_data):
    def run(campaign, observer=None, folder=None, data=None):
        student, teacher = tiny_backbone(width=24, seed=0), tiny_backbone(width=12, seed=1)
        return run_campaign(
            campaign,
            data or tiny_data(train=24, val=12, test=12),
            student=student,
            teacher=teacher if campaign.plan.method is MethodType.IDAT else None,
            device=CPU,
            observer=observer,
            checkpoint_dir=folder,
        )

    return run


def read_bytes(result):
    models = [result.main.student, result.main.teacher]
    if result.baseline is not None:
        models.append(result.baseline.student)
    return [safetensors.torch.save(m.state_dict()) for m in models if m is not None]


def test_alone_it_is_a_plain_run(go, pair, tiny_plan, tiny_data):
    plan = tiny_plan()
    result = go(CampaignPlan(plan=plan))
    student, teacher = pair
    data = tiny_data(train=24, val=12, test=12)
    alone = train(plan, data, student=student, teacher=teacher, device=CPU)
    for name, value in alone.student.state_dict().items():
        assert torch.equal(value, result.main.student.state_dict()[name])
    assert result.main.test == alone.test
    assert result.summary == {"learning_rate": plan.learning_rate}


class TestSearch:
    def test_takes_the_rate_that_does_best_on_validation(self, go, tiny_plan):
        watcher = Watcher()
        plan = tiny_plan(epochs=30, drop_path=0.0)
        result = go(CampaignPlan(plan=plan, search=True), watcher)
        search = result.summary["learning_rate_search"]["run"]
        rates = [row["learning_rate"] for row in search["candidates"]]
        assert rates == pytest.approx([2e-3, 2e-2 / math.sqrt(10), 2e-2, 2e-2 * math.sqrt(10)])
        best = max(search["candidates"], key=lambda row: (row["val_accuracy"], -row["val_loss"]))
        assert search["chosen"] == best["learning_rate"] == result.plan.learning_rate
        assert search["epochs"] == 3
        names = [stage.name for stage in watcher.stages]
        assert names == [*(f"run search {k}" for k in (1, 2, 3, 4)), "run"]
        assert [stage.is_main for stage in watcher.stages] == [False] * 4 + [True]

    def test_never_looks_at_the_test_split(self, go, tiny_plan, tiny_data):
        """Candidates are compared without it: other test images choose the same rate."""
        campaign = CampaignPlan(plan=tiny_plan(epochs=6), search=True)
        data = tiny_data(train=24, val=12, test=12)
        noise = torch.zeros_like(data.test.student_images)
        blind = dataclasses.replace(
            data, test=dataclasses.replace(data.test, student_images=noise, teacher_images=noise)
        )
        first, second = go(campaign, data=data), go(campaign, data=blind)
        assert first.summary == second.summary

    def test_without_validation_the_default_is_taken_and_said(self, go, tiny_plan, tiny_data):
        watcher = Watcher()
        data = dataclasses.replace(tiny_data(train=24), val=None)
        result = go(CampaignPlan(plan=tiny_plan(), search=True), watcher, data=data)
        assert result.plan.learning_rate == tiny_plan().learning_rate
        assert "no validation split" in watcher.notes[0][0]


class TestGuard:
    def collapsing(self, tiny_plan, **changes):
        """Sequential adapters at a rate that drives them to one answer for every image."""
        return tiny_plan(
            kind=AdapterKind.SEQUENTIAL,
            learning_rate=3.0,
            epochs=10,
            warmup_epochs=0,
            drop_path=0.0,
            **changes,
        )

    def test_the_constructed_case_collapses(self, go, tiny_plan):
        """The paper's Clevr/distance in small: without the guard nothing is learnt."""
        watcher = Watcher()
        result = go(CampaignPlan(plan=self.collapsing(tiny_plan)), watcher)
        assert result.main.collapsed_epoch is not None
        assert result.main.test.accuracy <= 0.5
        assert "had stopped learning" in watcher.notes[0][0]

    def test_and_auto_recovers_it(self, go, tiny_plan):
        result = go(CampaignPlan(plan=self.collapsing(tiny_plan), search=True))
        assert result.main.collapsed_epoch is None
        assert result.main.test.accuracy >= 0.75

    def test_a_rate_that_survives_the_search_and_not_the_run(self, go, tiny_plan, monkeypatch):
        """Every candidate is hopeless: the retries lower the rate until something is learnt."""
        monkeypatch.setattr("core.ml.training.campaign.SEARCH_FACTORS", (0.1,))
        watcher = Watcher()
        result = go(CampaignPlan(plan=self.collapsing(tiny_plan), search=True), watcher)
        retries = result.summary["retries"]
        assert retries
        assert {row["outcome"] for row in retries} <= {"collapsed", "diverged"}
        first = retries[0]["learning_rate"]
        assert result.plan.learning_rate == pytest.approx(first * 10 ** (-0.5 * len(retries)))
        assert result.main.test.accuracy > 0.5
        assert any("again with" in message for message, _ in watcher.notes)

    def test_a_given_rate_that_diverges_fails(self, tiny_plan, tiny_backbone, tiny_data):
        campaign = CampaignPlan(plan=tiny_plan(learning_rate=1.0, weight_decay=0.0))
        broken = tiny_backbone(width=24, seed=0)
        with torch.no_grad():
            next(iter(broken.module.parameters())).fill_(float("nan"))
        with pytest.raises(DivergedError, match="lower learning_rate"):
            run_campaign(
                dataclasses.replace(
                    campaign,
                    plan=dataclasses.replace(campaign.plan, method=MethodType.ADAPTER),
                ),
                tiny_data(),
                student=broken,
                teacher=None,
                device=CPU,
            )


class TestTwin:
    def test_is_the_same_student_trained_alone(self, go, pair, tiny_plan, tiny_data):
        plan = tiny_plan()
        result = go(CampaignPlan(plan=plan, compare_baseline=True))
        alone = train(
            dataclasses.replace(plan, method=MethodType.ADAPTER),
            tiny_data(train=24, val=12, test=12),
            student=pair[0],
            teacher=None,
            device=CPU,
        )
        for name, value in alone.student.state_dict().items():
            assert torch.equal(value, result.baseline.student.state_dict()[name])
        told = result.summary["baseline"]
        assert told["test_accuracy"] == alone.test.accuracy
        gain = result.main.test.accuracy - alone.test.accuracy
        assert told["gain"]["test"] == pytest.approx(gain)

    def test_a_loss_is_reported_with_its_sign(self):
        run = {"val_accuracy": 0.5, "test_accuracy": 0.25}
        twin = {"val_accuracy": None, "test_accuracy": 0.75}
        assert gain_over_baseline(run | {"baseline": twin}) == {"val": None, "test": -0.5}

    def test_has_a_search_of_its_own(self, go, tiny_plan):
        campaign = CampaignPlan(plan=tiny_plan(epochs=6), search=True, compare_baseline=True)
        result = go(campaign)
        assert set(result.summary["learning_rate_search"]) == {"run", "baseline"}

    def test_plain_adapters_have_none(self, go, tiny_plan):
        plan = tiny_plan(method=MethodType.ADAPTER)
        result = go(CampaignPlan(plan=plan, compare_baseline=True))
        assert result.baseline is None
        assert "baseline" not in result.summary


class TestSeeds:
    def test_mean_and_sample_deviation(self, go, tiny_plan):
        campaign = CampaignPlan(plan=tiny_plan(epochs=2), compare_baseline=True, seeds=3)
        result = go(campaign)
        seeds = result.summary["seeds"]
        assert [run["seed"] for run in seeds["runs"]] == [7, 8, 9]
        accuracies = [run["test_accuracy"] for run in seeds["runs"]]
        assert seeds["test_accuracy"]["mean"] == pytest.approx(sum(accuracies) / 3)
        assert seeds["test_accuracy"]["std"] == pytest.approx(statistics.stdev(accuracies))
        gains = [r["test_accuracy"] - r["baseline"]["test_accuracy"] for r in seeds["runs"]]
        assert seeds["test_gain"]["mean"] == pytest.approx(statistics.mean(gains))

    def test_the_exported_model_is_that_of_the_jobs_own_seed(self, go, tiny_plan):
        one = go(CampaignPlan(plan=tiny_plan()))
        three = go(CampaignPlan(plan=tiny_plan(), seeds=3))
        assert read_bytes(one) == read_bytes(three)


class TestResume:
    OPTIONS = MappingProxyType({"search": True, "compare_baseline": True, "seeds": 2})

    def test_cut_at_any_step_it_ends_with_the_same_bytes(self, go, tiny_plan, tmp_path):
        campaign = CampaignPlan(plan=tiny_plan(epochs=2), **self.OPTIONS)
        whole = Watcher()
        undisturbed = go(campaign, whole)
        total = len(whole.steps)
        assert whole.steps[-1] == (total, total)  # the planned steps were the right ones
        assert [step for step, _ in whole.steps] == list(range(1, total + 1))
        for cut in range(5, total, 13):
            folder = tmp_path / str(cut)
            with pytest.raises(TrainingStoppedError):
                go(campaign, Watcher(stop_after=cut), folder)
            resumed = go(campaign, Watcher(), folder)
            assert read_bytes(resumed) == read_bytes(undisturbed)
            assert resumed.summary == undisturbed.summary
            assert resumed.main.test == undisturbed.main.test

    def test_cut_again_and_again(self, go, tiny_plan, tmp_path):
        campaign = CampaignPlan(plan=tiny_plan(epochs=2), **self.OPTIONS)
        undisturbed = go(campaign)
        for _ in range(100):
            try:
                resumed = go(campaign, Watcher(stop_after=7), tmp_path)
            except TrainingStoppedError:
                continue
            break
        assert read_bytes(resumed) == read_bytes(undisturbed)
        assert resumed.summary == undisturbed.summary

    def test_across_a_collapse(self, go, tiny_plan, tmp_path, monkeypatch):
        monkeypatch.setattr("core.ml.training.campaign.SEARCH_FACTORS", (0.1,))
        campaign = CampaignPlan(plan=TestGuard().collapsing(tiny_plan), search=True)
        undisturbed = go(campaign)
        assert undisturbed.summary["retries"]
        for _ in range(100):
            try:
                resumed = go(campaign, Watcher(stop_after=10), tmp_path)
            except TrainingStoppedError:
                continue
            break
        assert read_bytes(resumed) == read_bytes(undisturbed)
        assert resumed.summary == undisturbed.summary
