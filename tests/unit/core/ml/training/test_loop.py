import dataclasses
import math

import pytest
import torch

from core.catalog.methods import DistillationLoss, MethodType, Precision
from core.errors import InvalidError
from core.ml.adapters.adapted import AdaptedModel
from core.ml.backbones.digest import compute_tensors_sha256
from core.ml.training import loop
from core.ml.training.evaluate import Evaluation, evaluate
from core.ml.training.loop import DivergedError, train
from core.ml.training.observer import SilentObserver
from core.ml.training.plan import InvalidPlanError
from core.ml.training.resident import build_split

CPU = torch.device("cpu")


def run(plan, data, pair, **options):
    student, teacher = pair
    if plan.method is MethodType.ADAPTER:
        teacher = None
    return train(plan, data, student=student, teacher=teacher, device=CPU, **options)


def name_of(result):
    return compute_tensors_sha256(result.student.state_dict())


class TestTrain:
    @pytest.mark.parametrize("kind", ["sequential", "parallel", "parallel_shared"])
    @pytest.mark.parametrize("loss", list(DistillationLoss))
    def test_learns(self, pair, tiny_plan, tiny_data, kind, loss):
        # The cosine's gradient grows as 1 / |logits|: at weight 1 it drowns a small network's own.
        weight = 0.1 if loss is DistillationLoss.COSINE else 1.0
        plan = tiny_plan(kind=kind, loss=loss, loss_weight=weight, epochs=12, drop_path=0.0)
        result = run(plan, tiny_data(train=48, val=24, test=24), pair)
        assert result.test.accuracy >= 0.75
        assert result.teacher_test.accuracy >= 0.75
        assert result.history[-1].train_loss < result.history[0].train_loss

    def test_without_a_teacher(self, pair, tiny_plan, tiny_data):
        result = run(tiny_plan(method=MethodType.ADAPTER), tiny_data(), pair)
        assert result.teacher is None
        assert result.teacher_test is None
        last = result.history[-1]
        assert (last.ce_teacher, last.distillation, last.teacher_val_accuracy) == (None,) * 3
        assert last.train_loss == pytest.approx(last.ce_student)

    def test_in_bf16(self, pair, tiny_plan, tiny_data):
        plan = tiny_plan(precision=Precision.BF16, epochs=12, drop_path=0.0)
        result = run(plan, tiny_data(train=48, val=24, test=24), pair)
        assert pair[0].dtype == torch.bfloat16
        assert all(p.dtype == torch.float32 for p in result.student.parameters())
        assert result.test.accuracy >= 0.75

    def test_one_backbone_for_both(self, tiny_backbone, tiny_plan, tiny_data):
        shared = tiny_backbone()
        result = run(tiny_plan(), tiny_data(), (shared, shared))
        student, teacher = result.student, result.teacher
        assert student.backbone is teacher.backbone
        assert not torch.equal(student.head.weight, teacher.head.weight)

    def test_backbones_keep_every_byte(self, pair, tiny_plan, tiny_data):
        before = [compute_tensors_sha256(b.module.state_dict()) for b in pair]
        run(tiny_plan(), tiny_data(), pair)
        assert [compute_tensors_sha256(b.module.state_dict()) for b in pair] == before

    def test_same_seed_same_bytes_and_another_seed_others(self, pair, tiny_plan, tiny_data):
        data = tiny_data()
        first, second = (run(tiny_plan(), data, pair) for _ in range(2))
        assert name_of(first) == name_of(second)
        assert name_of(run(tiny_plan(seed=8), data, pair)) != name_of(first)

    def test_metrics_are_means_over_images(self, pair, tiny_plan, tiny_data):
        """At learning rate 0 the epoch's mean is what an evaluation of the training split gives."""
        plan = tiny_plan(learning_rate=0.0, weight_decay=0.0, drop_path=0.0, epochs=1)
        data = tiny_data(train=20)  # batches of 8, 8 and 4
        result = run(plan, data, pair)
        split = data.train
        own = evaluate(result.student, split.student_images, split.labels)
        theirs = evaluate(result.teacher, split.teacher_images, split.labels)
        metrics = result.history[0]
        assert metrics.ce_student == pytest.approx(own.loss, rel=1e-5)
        assert metrics.ce_teacher == pytest.approx(theirs.loss, rel=1e-5)
        assert metrics.train_loss == pytest.approx(
            metrics.ce_student
            + metrics.ce_teacher
            + plan.distillation.weight * metrics.distillation
        )

    def test_every_image_once_an_epoch_and_another_order_in_the_next(
        self, pair, tiny_plan, tiny_data, monkeypatch
    ):
        seen = []
        take = loop.TrainStep.__call__

        def watch(self, split, rows, *, epoch, step):
            seen.append((epoch, rows.tolist()))
            return take(self, split, rows, epoch=epoch, step=step)

        monkeypatch.setattr(loop.TrainStep, "__call__", watch)
        run(tiny_plan(epochs=2), tiny_data(train=20), pair)
        epochs = [[row for e, rows in seen if e == epoch for row in rows] for epoch in (0, 1)]
        assert [len(rows) for _, rows in seen] == [8, 8, 4, 8, 8, 4]
        assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
        assert epochs[0] != epochs[1]

    def test_a_dropped_last_batch(self, pair, tiny_plan, tiny_data):
        plan = dataclasses.replace(tiny_plan(epochs=2), drop_last=True)
        assert run(plan, tiny_data(train=20), pair).steps == 4

    def test_observer_hears_of_every_step_and_epoch(self, pair, tiny_plan, tiny_data):
        class Recorder(SilentObserver):
            def __init__(self):
                self.steps, self.epochs = [], []

            def on_step(self, step, total_steps):
                self.steps.append((step, total_steps))

            def on_epoch(self, metrics):
                self.epochs.append(metrics)

        recorder = Recorder()
        result = run(tiny_plan(epochs=2), tiny_data(train=20), pair, observer=recorder)
        assert recorder.steps == [(step, 6) for step in range(1, 7)]
        assert recorder.epochs == result.history
        assert [m.epoch for m in recorder.epochs] == [0, 1]


class TestSelection:
    def test_test_split_is_looked_at_once_by_each_model(
        self, pair, tiny_plan, tiny_data, monkeypatch
    ):
        looked = []

        def count(model, images, labels, **options):
            looked.append(labels.data_ptr())
            return evaluate(model, images, labels, **options)

        monkeypatch.setattr(loop, "evaluate", count)
        data = tiny_data()
        run(tiny_plan(epochs=4), data, pair)
        pointers = {name: getattr(data, name).labels.data_ptr() for name in ("val", "test")}
        assert looked.count(pointers["val"]) == 2 * 4
        assert looked.count(pointers["test"]) == 2
        assert looked[-2:] == [pointers["test"]] * 2

    def test_exports_the_weights_of_the_best_epoch(self, pair, tiny_plan, tiny_data):
        data = tiny_data(val=30)
        result = run(tiny_plan(epochs=6, learning_rate=0.1), data, pair)
        accuracies = [metrics.val_accuracy for metrics in result.history]
        assert result.history[result.best_epoch].val_accuracy == max(accuracies)
        again = evaluate(result.student, data.val.student_images, data.val.labels)
        assert again == result.val
        assert evaluate(result.teacher, data.val.teacher_images, data.val.labels) == (
            result.teacher_val
        )

    def test_without_validation_it_is_the_last_epoch(self, pair, tiny_plan, tiny_data):
        data = dataclasses.replace(tiny_data(), val=None, test=None)
        result = run(tiny_plan(epochs=3), data, pair)
        assert result.best_epoch == 2
        assert (result.val, result.test, result.history[0].val_accuracy) == (None, None, None)

    @pytest.mark.parametrize(
        ("candidate", "best", "better"),
        [
            (Evaluation(10, 8, 1.0), Evaluation(10, 7, 0.1), True),
            (Evaluation(10, 7, 0.1), Evaluation(10, 8, 1.0), False),
            (Evaluation(10, 8, 0.4), Evaluation(10, 8, 0.5), True),
            (Evaluation(10, 8, 0.5), Evaluation(10, 8, 0.5), False),
        ],
    )
    def test_accuracy_then_loss_then_the_earlier(self, candidate, best, better):
        assert loop._is_better(candidate, best) is better


class TestRefusals:
    def test_divergence_names_epoch_and_learning_rate(self, pair, tiny_plan, tiny_data):
        with torch.no_grad():
            pair[0].module.norm.weight[0] = math.inf
        with pytest.raises(DivergedError, match=r"epoch 1 at learning rate 0\.02.*lower") as caught:
            run(tiny_plan(), tiny_data(), pair)
        assert caught.value.code == "diverged"

    def test_weights_that_overflow_after_the_last_loss(self, pair, tiny_plan, tiny_data):
        class Poison(SilentObserver):
            def on_step(self, step, total_steps):
                if step == total_steps:
                    for group in self.optimizer.param_groups:
                        group["params"][0].data.fill_(math.nan)

        poison = Poison()
        build = loop.build_optimizer

        def keep(*args, **kwargs):
            poison.optimizer = build(*args, **kwargs)
            return poison.optimizer

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "build_optimizer", keep)
            with pytest.raises(DivergedError, match="epoch 3"):
                run(tiny_plan(), tiny_data(), pair, observer=poison)

    def test_method_and_teacher_must_agree(self, pair, tiny_plan, tiny_data):
        with pytest.raises(InvalidError, match="teacher"):
            train(tiny_plan(), tiny_data(), student=pair[0], teacher=None, device=CPU)

    def test_images_of_another_size(self, pair, tiny_plan, tiny_data):
        data = tiny_data()
        small = data.train.student_images[:, ::2, ::2].contiguous()
        broken = dataclasses.replace(data.train, teacher_images=small)
        with pytest.raises(InvalidError, match=r"32 px images, not \(16, 16\)"):
            run(tiny_plan(), dataclasses.replace(data, train=broken), pair)

    def test_labels_outside_of_the_classes(self, pair, tiny_plan, tiny_data):
        with pytest.raises(InvalidError, match="labels run from 0 to 2"):
            run(tiny_plan(num_classes=2), tiny_data(), pair)

    def test_too_few_images_for_a_full_batch(self, pair, tiny_plan, tiny_data):
        plan = dataclasses.replace(tiny_plan(batch_size=64), drop_last=True)
        with pytest.raises(InvalidPlanError, match="20 training images"):
            run(plan, tiny_data(), pair)

    def test_an_adapted_model_has_no_hidden_state(self, pair, tiny_plan, tiny_data):
        """What is exported is all there is: rebuilt from it, the student answers the same."""
        data = tiny_data()
        result = run(tiny_plan(), data, pair)
        rebuilt = AdaptedModel(pair[0], result.student.spec, 3, seed=99)
        rebuilt.load_adapter_state(result.student.state_dict())
        assert evaluate(rebuilt, data.test.student_images, data.test.labels) == result.test


class TestBuildSplit:
    def test_equal_sizes_are_held_once(self, tiny_data):
        split = tiny_data().train
        assert split.teacher_images is split.student_images

    def test_read_only_arrays_are_copied(self, tiny_data):
        images = tiny_data().train.student_images.numpy().copy()
        images.flags.writeable = False
        split = build_split(images, [0] * len(images), device=CPU)
        assert split.student_images.numpy().flags.writeable

    def test_lengths_must_agree(self, tiny_data):
        images = tiny_data().train.student_images.numpy()
        with pytest.raises(InvalidError, match="20 images but 3 labels"):
            build_split(images, [0, 1, 2], device=CPU)

    def test_empty(self, tiny_data):
        with pytest.raises(InvalidError, match="without images"):
            build_split(tiny_data().train.student_images.numpy()[:0], [], device=CPU)

    def test_not_bytes(self, tiny_data):
        images = tiny_data().train.student_images.float().numpy()
        with pytest.raises(InvalidError, match="float32"):
            build_split(images, [0] * len(images), device=CPU)
