"""Which list is trained on, which one chooses, and when the test list is read."""

import json

import pytest
import torch

from benchmarks.vtab.learners import EpochFigures, Fit
from benchmarks.vtab.lists import ListName
from benchmarks.vtab.methods import METHODS
from benchmarks.vtab.protocols import Cell, build_protocol
from benchmarks.vtab.settings import Mode, Schedule, Settings
from core.catalog.methods import Precision
from core.catalog.recipes import get_recipe
from core.ml.training.evaluate import Evaluation
from core.ml.training.loop import DivergedError

TRAIN, VAL, BOTH, TEST = ListName
KITTI = get_recipe("vtab-kitti")  # rate 0.01


class ScriptedLearner:
    """Answers with figures by learning rate: {rate: [(correct of 10, loss) of each epoch]}."""

    def __init__(self, script):
        self.script, self.calls = script, []

    def fingerprint(self, plan, trained, measured):
        return plan.fingerprint(trained, str(measured))

    def fit(self, plan, trained, measured, *, label):
        self.calls.append(("fit", plan.learning_rate, plan.seed, trained, measured))
        epochs = self.script[plan.learning_rate, trained]
        if epochs is None:
            raise DivergedError("no finite number")
        models = {"student": torch.nn.Linear(4, 3), "teacher": torch.nn.Linear(2, 3)}
        if measured is None:
            return Fit(models, plan.total_epochs - 1, None, (), plan.total_epochs)
        best = max(range(len(epochs)), key=lambda k: (epochs[k][0], -epochs[k][1]))
        return Fit(
            models=models,
            best_epoch=best,
            best=Evaluation(10, *epochs[best]),
            history=tuple(EpochFigures(correct / 10, 0.25) for correct, _ in epochs),
            epochs=len(epochs),
        )

    def measure(self, fit, name):
        self.calls.append(("measure", name))
        return {"student": Evaluation(20, 13, 0.7), "teacher": Evaluation(20, 9, 0.9)}

    def forget(self, plan, trained, measured):
        self.calls.append(("forget", plan.learning_rate, trained))


def run(learner, tmp_path, seed=42, **settings):
    schedule = Schedule(epochs=3, warmup_epochs=0, cooldown_epochs=1)
    cell = Cell(KITTI, METHODS["iDAT-P-mse"], seed, num_classes=3)
    protocol = build_protocol(
        cell, learner, Settings(schedule=schedule, **settings), Precision.FP32, tmp_path
    )
    return protocol, protocol.run()


#: Epochs of each rate; the grid of KITTI is 0.001 to 0.03.
SCRIPT = {
    (0.001, TRAIN): [(4, 1.0), (5, 0.9), (7, 0.8), (6, 0.8)],
    (0.003, TRAIN): [(4, 1.0), (7, 0.5), (7, 0.6), (6, 0.4)],
    (0.01, TRAIN): [(3, 1.0), (6, 0.9), (6, 0.1), (5, 0.3)],
    (0.03, TRAIN): None,
    (0.003, BOTH): [],
}


class TestStrict:
    def test_chooses_on_validation_and_tests_once(self, tmp_path):
        learner = ScriptedLearner(SCRIPT)
        protocol, result = run(learner, tmp_path)
        seen = [call[:5] for call in learner.calls if call[0] == "fit"]
        assert seen == [
            ("fit", 0.001, 0, TRAIN, VAL),
            ("fit", 0.003, 0, TRAIN, VAL),
            ("fit", 0.01, 0, TRAIN, VAL),
            ("fit", 0.03, 0, TRAIN, VAL),
            ("fit", 0.003, 42, BOTH, None),
        ]
        assert [call for call in learner.calls if call[0] == "measure"] == [("measure", TEST)]
        # 7 of 10 twice: the lower loss wins, which is epoch 2 at 0.003.
        assert (result["learning_rate"], result["epochs_run"]) == (0.003, 2)
        assert result["test"] == {
            "images": 20,
            "accuracy": 13 / 20,
            "last_epoch_accuracy": 13 / 20,
            "teacher_last_epoch_accuracy": 9 / 20,
        }
        assert [each["status"] for each in result["selection"]] == ["ok", "ok", "ok", "diverged"]
        assert result["selection"][1] | {"seconds": 0} == {
            "learning_rate": 0.003,
            "status": "ok",
            "epochs": 2,
            "val_accuracy": 0.7,
            "val_loss": 0.5,
            "last_val_accuracy": 0.6,
            "collapsed_epoch": None,
            "seconds": 0,
        }
        assert result["trainable_parameters"]["student"]["total"] == 4 * 3 + 3
        assert ("forget", 0.003, BOTH) not in learner.calls
        protocol.forget()
        assert learner.calls[-1] == ("forget", 0.003, BOTH)

    def test_another_seed_reads_what_was_chosen(self, tmp_path):
        _, first = run(ScriptedLearner(SCRIPT), tmp_path, seed=1)
        learner = ScriptedLearner(SCRIPT)
        _, second = run(learner, tmp_path, seed=2)
        assert [call for call in learner.calls if call[0] == "fit"] == [
            ("fit", 0.003, 2, BOTH, None)
        ]
        assert first["selection"] == second["selection"]

    def test_another_selection_seed_chooses_anew(self, tmp_path):
        run(ScriptedLearner(SCRIPT), tmp_path)
        learner = ScriptedLearner(SCRIPT)
        run(learner, tmp_path, selection_seed=5)
        assert len([call for call in learner.calls if call[:1] + call[2:3] == ("fit", 5)]) == 4

    def test_a_grid_of_ones_own(self, tmp_path):
        learner = ScriptedLearner({(0.5, TRAIN): [(1, 1.0)], (0.5, BOTH): []})
        _, result = run(learner, tmp_path, learning_rates=(0.5,))
        assert (result["learning_rate"], result["epochs_run"]) == (0.5, 1)

    def test_everything_diverges(self, tmp_path):
        learner = ScriptedLearner({(rate, TRAIN): None for rate in (0.001, 0.003, 0.01, 0.03)})
        _, result = run(learner, tmp_path)
        assert (result["status"], result["test"]) == ("diverged", None)
        assert "every learning rate" in result["error"]
        assert len(result["selection"]) == 4
        assert json.loads(json.dumps(result)) == result

    def test_the_refit_diverges(self, tmp_path):
        learner = ScriptedLearner(SCRIPT | {(0.003, BOTH): None})
        protocol, result = run(learner, tmp_path)
        assert (result["status"], result["learning_rate"]) == ("diverged", 0.003)
        assert ("measure", TEST) not in learner.calls
        protocol.forget()
        assert learner.calls[-1] == ("forget", 0.003, BOTH)


class TestPaper:
    def test_tests_every_epoch_and_reports_both(self, tmp_path):
        learner = ScriptedLearner({(0.01, BOTH): [(4, 1.0), (9, 0.9), (9, 0.8), (6, 0.7)]})
        _, result = run(learner, tmp_path, mode=Mode.PAPER)
        assert learner.calls == [("fit", 0.01, 42, BOTH, TEST)]
        assert result["test"] == {
            "images": 10,
            "accuracy": 0.6,
            "last_epoch_accuracy": 0.6,
            "teacher_last_epoch_accuracy": 0.25,
            "best_on_test_accuracy": 0.9,
            "best_on_test_epoch": 3,
            "accuracy_by_epoch": [0.4, 0.9, 0.9, 0.6],
        }
        assert "selection" not in result
        assert (result["weight_decay"], result["drop_path"]) == (5e-5, 0.0)

    def test_divergence_is_a_result(self, tmp_path):
        _, result = run(ScriptedLearner({(0.01, BOTH): None}), tmp_path, mode=Mode.PAPER)
        assert (result["status"], result["learning_rate"], result["test"]) == (
            "diverged",
            0.01,
            None,
        )


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_has_a_name_of_the_paper(name):
    method = METHODS[name]
    assert method.has_teacher == name.startswith("iDAT")
    assert (method.kind is None) == (name == "linear_probe")
