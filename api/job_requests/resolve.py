"""From a request to a complete `JobSpec`: the one place where defaults and `auto` get values."""

import re

from api.job_requests.adapters import ResolvedAdapter, resolve_adapter
from api.job_requests.backbones import resolve_backbones
from api.job_requests.distillation import check_distillation
from api.job_requests.figures import resolve_figures
from api.job_requests.problems import build_error
from api.job_requests.schedule import resolve_schedule
from api.schemas.jobs import DistillationRequest, JobRequest
from core.catalog.backbones import BackboneFacts
from core.catalog.methods import MethodType
from core.catalog.pairs import PAIRS, PairDefaults
from core.errors import FieldError
from core.platform.jobs.specs import JobSpec


def resolve(request: JobRequest) -> JobSpec:
    """Return the specification that a request stands for.

    Raises:
        InvalidError: unknown names, or fields that contradict each other; all are listed.
    """
    errors: list[FieldError] = []
    pair, student, teacher = resolve_backbones(request.method, errors)
    defaults = PAIRS[pair].defaults if pair else PairDefaults()
    adapter, teacher_adapter = _resolve_adapters(request, defaults, student, teacher, errors)
    distillation = request.method.distillation or DistillationRequest()
    check_distillation(distillation, student, errors)
    schedule = resolve_schedule(request, defaults, adapter.facts, errors)
    if request.compare_baseline and request.method.type is MethodType.ADAPTER:
        message = "the method 'adapter' is the baseline already; use 'idat' or leave it out"
        errors.append(FieldError("/compare_baseline", message, "not_allowed"))
    figures = resolve_figures(request.figures, errors)
    if errors:
        raise build_error(errors)
    assert student is not None, "an unknown student is an error"
    precision = request.hyperparameters.precision
    return JobSpec(
        method=request.method.type.value,
        pair=pair,
        student=student.name,
        teacher=teacher.name if teacher else None,
        adapter_kind=adapter.kind.value,
        hidden_dim=adapter.hidden_dim,
        scale=adapter.scale,
        teacher_adapter_kind=teacher_adapter.kind.value if teacher_adapter else None,
        teacher_hidden_dim=teacher_adapter.hidden_dim if teacher_adapter else None,
        teacher_scale=teacher_adapter.scale if teacher_adapter else None,
        loss=distillation.loss.value,
        loss_weight=distillation.weight,
        temperature=distillation.temperature,
        squared_temperature=distillation.squared_temperature,
        direction=distillation.direction,
        detach_teacher=distillation.detach_teacher,
        layers=distillation.layers,
        tokens=distillation.tokens.value,
        recipe=schedule.recipe,
        epochs=schedule.epochs,
        warmup_epochs=schedule.warmup_epochs,
        batch_size=schedule.batch_size,
        learning_rate=schedule.learning_rate,
        search_learning_rate=schedule.search_learning_rate,
        weight_decay=schedule.weight_decay,
        drop_path=schedule.drop_path,
        precision="auto" if precision is None else precision.value,
        seed=request.seed,
        compare_baseline=request.compare_baseline,
        seeds=request.seeds,
        figures=figures,
    )


def build_slug(name: str) -> str:
    """Return a name for a job and its model, fit for URLs, after a dataset's name."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")
    return slug[:100] or "model"


def _resolve_adapters(
    request: JobRequest,
    defaults: PairDefaults,
    student: BackboneFacts | None,
    teacher: BackboneFacts | None,
    errors: list[FieldError],
) -> tuple[ResolvedAdapter, ResolvedAdapter | None]:
    """Return the student's adapter and the teacher's, None where it has the student's."""
    method = request.method
    own = [student] if student else []
    others = [teacher] if teacher else []
    if method.teacher_adapter is None:
        both = own + [facts for facts in others if facts not in own]
        pointer = "/method/adapter"
        return resolve_adapter(method.adapter, defaults, both, pointer, errors), None
    adapter = resolve_adapter(method.adapter, defaults, own, "/method/adapter", errors)
    pointer = "/method/teacher_adapter"
    other = resolve_adapter(method.teacher_adapter, defaults, others, pointer, errors)
    return adapter, other
