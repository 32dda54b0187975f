"""A finished run as the analyses see it: models, images, history; each prediction is made once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from torch import Tensor

from core.ml.adapters.adapted import AdaptedModel
from core.ml.analysis.predictions import Predictions, predict
from core.ml.data.manifest import Manifest, ManifestItem
from core.ml.training.resident import ResidentData, ResidentSplit
from core.ml.training.run_state import EpochMetrics
from core.types import Split

#: Called with (what is being worked on, steps done, steps in all).
OnProgress = Callable[[str, int, int], None]


class Role(StrEnum):
    """Which model of a run."""

    STUDENT = "student"
    TEACHER = "teacher"
    BASELINE = "baseline"  #: the student trained without a teacher, everything else equal


def _say_nothing(_what: str, _done: int, _total: int) -> None:
    """Report to nobody."""


@dataclass(frozen=True, eq=False)
class AnalysisInputs:
    """What there is to analyse.

    Attributes:
        models: the trained models by role; the student is always there.
        data: the images and labels of every split.
        manifest: the names that belong to them.
        histories: the figures of every epoch by role; the teacher's are in the student's.
        best_epoch: from 0, the epoch whose weights the student has.
        seed: of the run, for everything random here.
        on_progress: hears how far a pass over images is.
    """

    models: dict[Role, AdaptedModel]
    data: ResidentData
    manifest: Manifest
    histories: dict[Role, Sequence[EpochMetrics]]
    best_epoch: int
    seed: int
    on_progress: OnProgress = _say_nothing
    _predictions: dict[tuple[Role, Split], Predictions] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""
        return self.manifest.classes

    @property
    def evaluated(self) -> Split:
        """The split that figures are measured on: test, else val, else train."""
        for split in (Split.TEST, Split.VAL):
            if self.find_split(split) is not None:
                return split
        return Split.TRAIN

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that have images."""
        return tuple(split for split in Split if self.find_split(split) is not None)

    def find_split(self, split: Split) -> ResidentSplit | None:
        """Return the images of a split; None if it is empty."""
        found: ResidentSplit | None = getattr(self.data, split.value)
        return found

    def get_split(self, split: Split) -> ResidentSplit:
        """Return the images of a split that is there."""
        found = self.find_split(split)
        assert found is not None, f"the {split.value} split is empty"
        return found

    def items(self, split: Split) -> list[ManifestItem]:
        """Return the names of a split's images, in the order of its rows."""
        return [self.manifest.items[row] for row in self.manifest.indices(split)]

    def images(self, role: Role, split: Split) -> Tensor:
        """Return a split's images at the size that a model reads: uint8 (n, px, px, 3)."""
        resident = self.get_split(split)
        if role is not Role.TEACHER:
            return resident.student_images
        assert resident.teacher_images is not None, "a run with a teacher has its images"
        return resident.teacher_images

    def predict(self, role: Role, split: Split) -> Predictions:
        """Return what a model says about a split; computed when first asked for."""
        key = (role, split)
        if key not in self._predictions:
            self._predictions[key] = predict(
                self.models[role],
                self.images(role, split),
                self.get_split(split).labels,
                on_batch=lambda done, total: self.on_progress(
                    f"{role.value} on {split.value}", done, total
                ),
            )
        return self._predictions[key]
