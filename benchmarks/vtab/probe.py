"""The linear probe: a head trained on features that are computed once.

The head starts, learns and is chosen as in the other methods: the same initialisation, batches,
AdamW and schedule. There is no stochastic depth, for the features are fixed; weight decay is the
dataset's.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.vtab.learners import EpochFigures, Fit, Workplace
from benchmarks.vtab.lists import ListName
from core.ml.backbones.load import LoadedBackbone
from core.ml.backbones.normalise import normalise_images
from core.ml.training.evaluate import Evaluation
from core.ml.training.loop import DivergedError
from core.ml.training.optim import build_optimizer, set_learning_rate
from core.ml.training.plan import TrainPlan
from core.ml.training.schedule import learning_rate
from core.ml.training.seeds import build_generator

_PART = 128
_INITIAL_STD = 0.02  # of every head, see core.ml.adapters


class ProbeLearner:
    """Trains a head on the frozen student's features."""

    def __init__(self, place: Workplace, *, student: LoadedBackbone) -> None:
        """Take the frozen network, placed on its device in the precision of the run."""
        self._place, self._backbone = place, student
        self._features: dict[ListName, Tensor] = {}

    def fingerprint(self, plan: TrainPlan, trained: ListName, measured: ListName | None) -> str:
        """Return what names a fit and everything that decides it."""
        lists = f"{self._place.dataset.digest}/{trained.value}/{measured and measured.value}"
        return plan.fingerprint("linear probe", lists, self._backbone.weights_sha256)

    def fit(
        self, plan: TrainPlan, trained: ListName, measured: ListName | None, *, label: str
    ) -> Fit:
        """Train a head; it takes seconds, so nothing is kept to resume it."""
        features, labels = self._read(trained), self._labels(trained)
        head = self._build_head(plan)
        optimizer = build_optimizer([dict(head.named_parameters())], weight_decay=plan.weight_decay)
        best_epoch, best, best_state = plan.total_epochs - 1, None, None
        history: list[EpochFigures] = []
        steps = plan.steps_per_epoch(len(labels))
        for epoch in range(plan.total_epochs):
            self._place.stop.check()
            self._place.console.show(f"  {label}: epoch {epoch + 1}/{plan.total_epochs}")
            rate = learning_rate(
                epoch,
                peak=plan.learning_rate,
                epochs=plan.epochs,
                warmup_epochs=plan.warmup_epochs,
            )
            set_learning_rate(optimizer, rate)
            generator = build_generator(plan.seed, "order", epoch=epoch)
            order = torch.randperm(len(labels), generator=generator).to(labels.device)
            for rows in torch.split(order, plan.batch_size)[:steps]:
                loss = functional.cross_entropy(head(features[rows]), labels[rows])
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
            _check_finite(head, epoch, plan)
            if measured is None:
                continue
            figures = self._evaluate(head, measured)
            history.append(EpochFigures(figures.accuracy, None))
            if best is None or (figures.correct, -figures.loss) > (best.correct, -best.loss):
                best_epoch, best = epoch, figures
                best_state = {name: value.clone() for name, value in head.state_dict().items()}
        if best_state is not None:
            head.load_state_dict(best_state)
        return Fit({"student": head}, best_epoch, best, tuple(history), plan.total_epochs)

    def measure(self, fit: Fit, name: ListName) -> dict[str, Evaluation]:
        """Measure the head of a fit on a list."""
        head = fit.models["student"]
        assert isinstance(head, nn.Linear)
        return {"student": self._evaluate(head, name)}

    def forget(self, plan: TrainPlan, trained: ListName, measured: ListName | None) -> None:
        """There is nothing to forget."""

    def _build_head(self, plan: TrainPlan) -> nn.Linear:
        head = nn.Linear(self._backbone.num_features, plan.num_classes)
        with torch.no_grad():
            head.weight.normal_(
                0.0, _INITIAL_STD, generator=build_generator(plan.seed, "init/student")
            )
            head.bias.zero_()
        return head.to(self._place.device)

    def _evaluate(self, head: nn.Linear, name: ListName) -> Evaluation:
        labels = self._labels(name)
        with torch.no_grad():
            logits = head(self._read(name))
            loss = functional.cross_entropy(logits.double(), labels)
        correct = int((logits.argmax(dim=1) == labels).sum())
        return Evaluation(images=len(labels), correct=correct, loss=float(loss))

    def _labels(self, name: ListName) -> Tensor:
        return torch.tensor(self._place.dataset.lists[name].labels(), device=self._place.device)

    def _read(self, name: ListName) -> Tensor:
        """Return the features of a list, fp32 (images, features), computed once."""
        if name not in self._features:
            place, backbone = self._place, self._backbone
            images = place.images(name, backbone.image_px)
            # Written into one tensor: what a network returns may be a view of all of its tokens,
            # and keeping the views of 73,728 images would keep tens of gigabytes.
            features = torch.empty(len(images), backbone.num_features, device=place.device)
            for start in range(0, len(images), _PART):
                place.stop.check()
                place.console.show(f"  features: {start} of {len(images)} images")
                part = torch.tensor(images[start : start + _PART], device=place.device)
                with torch.no_grad():
                    features[start : start + _PART] = backbone.module(
                        normalise_images(part, backbone)
                    )
            self._features[name] = features
        return self._features[name]


def _check_finite(head: nn.Linear, epoch: int, plan: TrainPlan) -> None:
    if all(bool(torch.isfinite(p).all()) for p in head.parameters()):
        return
    raise DivergedError(
        f"the probe diverged in epoch {epoch} at learning rate {plan.learning_rate:g}; lower it"
    )
