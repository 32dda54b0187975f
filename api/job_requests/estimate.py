"""What a job would need: memory by a formula, time by what jobs like it have taken."""

from statistics import median

from sqlalchemy.orm import Session

from api.job_requests.counts import count_steps, count_trainable
from api.schemas.estimates import Estimate, EstimateBasis, MemoryBasis
from core.catalog.backbones import get_backbone
from core.catalog.memory import MemoryNeed, Network, estimate_memory
from core.catalog.methods import AdapterKind, Precision
from core.errors import InvalidError
from core.platform.db.tables import DatasetRow, JobRow
from core.platform.jobs.history import list_finished
from core.platform.jobs.specs import JobSpec
from core.types import DatasetState, Split

#: What two jobs share of which one step takes the same time.
_SAME = ("method", "student", "teacher", "adapter_kind", "hidden_dim", "batch_size", "precision")


def estimate(session: Session, spec: JobSpec, dataset: DatasetRow, project: str) -> Estimate:
    """Return what a job on a dataset would need, as far as it can be told."""
    need = estimate_job_memory(spec, dataset)
    step_s, jobs = _find_step_s(session, spec, project)
    seconds = None
    if step_s is not None and dataset.state == DatasetState.READY:
        seconds = round(step_s * count_steps(spec, _count_images(dataset, Split.TRAIN)), 1)
    return Estimate(
        memory_bytes=need.total,
        seconds=seconds,
        basis=EstimateBasis(
            memory=MemoryBasis(
                weights_bytes=need.weights,
                activations_bytes=need.activations,
                trainable_bytes=need.trainable,
                images_bytes=need.images,
                process_bytes=need.process,
                precision="bf16" if spec.precision == Precision.BF16 else "fp32",
            ),
            jobs=jobs if seconds is not None else 0,
        ),
    )


def estimate_job_memory(spec: JobSpec, dataset: DatasetRow) -> MemoryNeed:
    """Return what a job on a dataset needs; of one that is not ready the images are left out.

    `auto` counts as fp32, the larger: which it will be is decided where the job runs.
    """
    classes = max(1, len(dataset.classes))
    counts = count_trainable(spec, classes)
    kind = AdapterKind(spec.adapter_kind)
    networks = [Network(get_backbone(spec.student), kind, counts.student.total)]
    if spec.teacher is not None and counts.teacher is not None:
        teacher_kind = AdapterKind(spec.teacher_adapter_kind or kind)
        trainable = counts.teacher.total + counts.distillation
        networks.append(Network(get_backbone(spec.teacher), teacher_kind, trainable))
    return estimate_memory(
        networks,
        number_bytes=2 if spec.precision == Precision.BF16 else 4,
        batch_size=spec.batch_size,
        images=sum(_count_images(dataset, split) for split in Split),
    )


def _find_step_s(session: Session, spec: JobSpec, project: str) -> tuple[float | None, int]:
    """Return the median time of a step of the project's jobs like this, and of how many jobs."""
    wanted = [getattr(spec, name) for name in _SAME]
    times_s = [
        (job.finished_at - job.started_at) / steps
        for job, dataset in list_finished(session, project)
        if job.started_at is not None
        and job.finished_at is not None
        and [job.spec.get(name) for name in _SAME] == wanted
        and (steps := _count_steps_of(job, dataset))
    ]
    return (median(times_s) if times_s else None), len(times_s)


def _count_steps_of(job: JobRow, dataset: DatasetRow) -> int:
    try:
        return count_steps(JobSpec.from_json(job.spec), _count_images(dataset, Split.TRAIN))
    except InvalidError:
        return 0  # a recipe that has changed since


def _count_images(dataset: DatasetRow, split: Split) -> int:
    count = dataset.splits.get(split.value, 0)
    assert isinstance(count, int)
    return count
