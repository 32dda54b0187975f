"""From a supervisor's request to what the ML code takes: the only translator between the two."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.catalog.methods import (
    AdapterKind,
    DistillationLoss,
    FeatureTokens,
    KlDirection,
    MethodType,
)
from core.ml.adapters.base import AdapterSpec
from core.ml.backbones.load import LoadedBackbone, load_backbone
from core.ml.backbones.precision import resolve_device, resolve_precision
from core.ml.data.cache import cache_name, open_cache
from core.ml.data.manifest import Manifest, load_manifest
from core.ml.losses.spec import DistillationSpec
from core.ml.training.campaign import CampaignPlan
from core.ml.training.plan import TrainPlan, build_plan
from core.ml.training.resident import ResidentData, ResidentSplit, build_split
from core.platform.datasets.archive import ArchiveLimits
from core.platform.jobs.specs import JobSpec
from core.types import Split
from worker.decoding import build_cache


@dataclass(frozen=True)
class MadeCache:
    """An image cache that this attempt had to make.

    Attributes:
        image_px: side of its images.
        path: the file.
    """

    image_px: int
    path: Path


@dataclass(frozen=True, eq=False)
class Training:
    """Everything that `core.ml.training.campaign.run_campaign` needs.

    Attributes:
        campaign: every hyperparameter, and which runs to do.
        student: its frozen backbone.
        teacher: likewise; None for plain adapter-tuning.
        data: the images in memory.
        classes: class names in the order of the labels.
        preprocess_version: of the preprocessing that made the images.
        device: where to train.
        made_caches: what other jobs on this dataset can use.
    """

    campaign: CampaignPlan
    student: LoadedBackbone
    teacher: LoadedBackbone | None
    data: ResidentData
    classes: tuple[str, ...]
    preprocess_version: int
    device: torch.device
    made_caches: tuple[MadeCache, ...]


def build_training(
    request: dict[str, Any], workdir: Path, *, on_decoded: Callable[[int, int], None]
) -> Training:
    """Load backbones and images and resolve the plan.

    Args:
        request: what `worker.training` wrote.
        workdir: where image caches of other sizes are made.
        on_decoded: called with (done, total) while one is made.

    Raises:
        AppError: weights that cannot be had, or parts that do not belong together.
    """
    spec = JobSpec.from_json(request["spec"])
    device = resolve_device(request["device"])
    weights_dir = Path(request["weights_dir"]) if request["weights_dir"] else None
    student = load_backbone(spec.student, weights_dir=weights_dir)
    teacher = None
    if spec.teacher == spec.student:
        teacher = student  # one resident backbone serves both
    elif spec.teacher is not None:
        teacher = load_backbone(spec.teacher, weights_dir=weights_dir)
    manifest = load_manifest(Path(request["dataset"]["manifest"]))
    caches, made = _open_caches(request, manifest, workdir, [student, teacher], on_decoded)
    data = _build_data(
        manifest,
        caches[student.image_px],
        caches[teacher.image_px] if teacher else None,
        device=device,
        # A checkpoint is its job's own, even where another job asks for the very same thing.
        fingerprint=f"{manifest.digest} {request['job_id']}",
    )
    return Training(
        campaign=CampaignPlan(
            plan=_build_plan(spec, len(manifest.classes), device),
            search=spec.search_learning_rate,
            compare_baseline=spec.compare_baseline,
            seeds=spec.seeds,
        ),
        student=student,
        teacher=teacher,
        data=data,
        classes=manifest.classes,
        preprocess_version=manifest.preprocess_version,
        device=device,
        made_caches=tuple(made),
    )


def _build_plan(spec: JobSpec, num_classes: int, device: torch.device) -> TrainPlan:
    return build_plan(
        method=MethodType(spec.method),
        kind=AdapterKind(spec.adapter_kind),
        hidden_dim=spec.hidden_dim,
        scale=spec.scale,
        num_classes=num_classes,
        learning_rate=spec.learning_rate,
        weight_decay=spec.weight_decay,
        precision=resolve_precision(spec.precision, device),
        epochs=spec.epochs,
        batch_size=spec.batch_size,
        warmup_epochs=spec.warmup_epochs,
        drop_path=spec.drop_path,
        seed=spec.seed,
        distillation=DistillationSpec(
            loss=DistillationLoss(spec.loss),
            weight=spec.loss_weight,
            temperature=spec.temperature,
            squared_temperature=spec.squared_temperature,
            direction=KlDirection(spec.direction),
            detach_teacher=spec.detach_teacher,
            layers=None if spec.layers is None else tuple(spec.layers),
            tokens=FeatureTokens(spec.tokens),
        ),
        teacher_adapter=_build_teacher_adapter(spec),
        recipe=spec.recipe,
    )


def _build_teacher_adapter(spec: JobSpec) -> AdapterSpec | None:
    if spec.teacher_adapter_kind is None:
        return None
    assert spec.teacher_hidden_dim is not None, "set with the kind"
    assert spec.teacher_scale is not None, "set with the kind"
    kind = AdapterKind(spec.teacher_adapter_kind)
    return AdapterSpec(kind, spec.teacher_hidden_dim, spec.teacher_scale)


def _open_caches(
    request: dict[str, Any],
    manifest: Manifest,
    workdir: Path,
    backbones: list[LoadedBackbone | None],
    on_decoded: Callable[[int, int], None],
) -> tuple[dict[int, np.ndarray], list[MadeCache]]:
    """Open the image caches of the sizes needed; make those that no job before has made."""
    stored: dict[str, str] = request["dataset"]["caches"]
    caches: dict[int, np.ndarray] = {}
    made: list[MadeCache] = []
    for image_px in sorted({backbone.image_px for backbone in backbones if backbone}):
        path = Path(stored.get(str(image_px), ""))
        if str(image_px) not in stored:
            path = workdir / cache_name(image_px)
            build_cache(
                Path(request["dataset"]["archive"]),
                manifest,
                image_px,
                path,
                limits=ArchiveLimits(
                    max_files=request["max_archive_files"],
                    max_image_bytes=request["max_image_bytes"],
                ),
                max_pixels=request["max_image_pixels"],
                on_progress=on_decoded,
            )
            made.append(MadeCache(image_px, path))
        caches[image_px] = open_cache(path)
    return caches, made


def _build_data(
    manifest: Manifest,
    student_cache: np.ndarray,
    teacher_cache: np.ndarray | None,
    *,
    device: torch.device,
    fingerprint: str,
) -> ResidentData:
    labels = manifest.labels()

    def build(split: Split) -> ResidentSplit | None:
        rows = manifest.indices(split)
        if len(rows) == 0:
            return None
        images = student_cache[rows]
        if teacher_cache is None:
            others = None
        else:
            others = images if teacher_cache is student_cache else teacher_cache[rows]
        return build_split(images, labels[rows], device=device, teacher_images=others)

    train = build(Split.TRAIN)
    assert train is not None, "the intake refuses a dataset without training images"
    return ResidentData(
        train=train, val=build(Split.VAL), test=build(Split.TEST), fingerprint=fingerprint
    )
