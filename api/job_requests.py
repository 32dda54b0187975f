"""From a request to a complete `JobSpec`: the one place where defaults and `auto` get their values.

Needs the catalog only, so the control role checks names and sizes without loading torch.
"""

import math
import re
from collections.abc import Iterable
from typing import Any, TypeVar

from api.schemas.jobs import (
    DistillationRequest,
    FigureRequest,
    JobRequest,
    MethodRequest,
    TrainableByRole,
    TrainableParameters,
)
from core.catalog.adapters import adapter_parameters
from core.catalog.backbones import (
    BackboneFacts,
    find_backbone,
    get_backbone,
    head_parameters,
    list_backbones,
)
from core.catalog.figures import FIGURES, FigureName
from core.catalog.methods import AdapterKind, MethodType, Recipe
from core.catalog.pairs import PAIRS, PairDefaults
from core.errors import FieldError, InvalidError
from core.platform.jobs.specs import JobSpec

Value = TypeVar("Value")

#: The released code's schedule, 10 epochs of cooldown not counted.
OFFICIAL_EPOCHS = 100
OFFICIAL_WARMUP_EPOCHS = 10
OFFICIAL_COOLDOWN_EPOCHS = 10
OFFICIAL_BATCH_SIZE = 64
_WARMUP_SHARE = 10


def resolve(request: JobRequest) -> JobSpec:
    """Return the specification that a request stands for.

    Raises:
        InvalidError: unknown names, or fields that contradict each other; all are listed.
    """
    errors: list[FieldError] = []
    pair, student, teacher = _resolve_backbones(request.method, errors)
    defaults = PAIRS[pair].defaults if pair else PairDefaults()
    adapter = request.method.adapter
    hidden_dim = defaults.hidden_dim if adapter.hidden_dim is None else adapter.hidden_dim
    _check_hidden_dim(hidden_dim, (student, teacher), errors)
    distillation = request.method.distillation or DistillationRequest()

    given = request.hyperparameters
    if request.recipe is Recipe.OFFICIAL:
        _check_official(request, errors)
        epochs, batch_size = OFFICIAL_EPOCHS, OFFICIAL_BATCH_SIZE
        warmup_epochs = OFFICIAL_WARMUP_EPOCHS
    else:
        epochs = _first(given.epochs, defaults.epochs)
        batch_size = _first(given.batch_size, defaults.batch_size)
        warmup_epochs = _first(given.warmup_epochs, epochs // _WARMUP_SHARE)
        if warmup_epochs > epochs:
            message = f"{warmup_epochs} epochs of warm-up do not fit into {epochs} epochs"
            errors.append(FieldError("/hyperparameters/warmup_epochs", message, "out_of_range"))
    figures = _resolve_figures(request.figures, errors)
    if errors:
        raise _invalid(errors)
    assert student is not None, "an unknown student is an error"
    return JobSpec(
        method=request.method.type.value,
        pair=pair,
        student=student.name,
        teacher=teacher.name if teacher else None,
        adapter_kind=_first(adapter.kind, defaults.adapter_kind).value,
        hidden_dim=hidden_dim,
        scale=_first(adapter.scale, defaults.scale),
        loss=distillation.loss.value,
        loss_weight=distillation.weight,
        temperature=distillation.temperature,
        recipe=request.recipe.value,
        epochs=epochs,
        warmup_epochs=warmup_epochs,
        batch_size=batch_size,
        learning_rate=_first(given.learning_rate, defaults.learning_rate),
        weight_decay=_first(given.weight_decay, defaults.weight_decay),
        drop_path=_first(given.drop_path, 0.0),
        precision="auto" if given.precision is None else given.precision.value,
        seed=request.seed,
        figures=figures,
    )


def count_trainable(spec: JobSpec, num_classes: int) -> TrainableByRole:
    """Return how many numbers training would change, from the table of backbone facts."""
    student = _count_one(spec, spec.student, num_classes)
    teacher = None if spec.teacher is None else _count_one(spec, spec.teacher, num_classes)
    return TrainableByRole(
        student=student,
        teacher=teacher,
        total=student.total + (teacher.total if teacher else 0),
    )


def count_frozen(spec: JobSpec) -> dict[str, int]:
    """Return the sizes of the backbones, which training never changes."""
    names = {"student": spec.student, "teacher": spec.teacher}
    return {role: get_backbone(name).parameters for role, name in names.items() if name}


def count_steps(spec: JobSpec, train_images: int) -> int:
    """Return how many optimizer steps a job would take.

    Raises:
        InvalidError: none at all: the recipe drops the only batch there is.
    """
    if spec.recipe == Recipe.OFFICIAL:
        steps = train_images // spec.batch_size
        if steps == 0:
            message = (
                f"the official recipe drops a last batch that is not full, and the dataset's "
                f"{train_images} training images do not fill one of {spec.batch_size}"
            )
            raise _invalid([FieldError("/recipe", message, "dataset_too_small")])
        return steps * (spec.epochs + OFFICIAL_COOLDOWN_EPOCHS)
    return math.ceil(train_images / spec.batch_size) * spec.epochs


def build_slug(name: str) -> str:
    """Return a name for a job and its model, fit for URLs, after a dataset's name."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")
    return slug[:100] or "model"


def _resolve_backbones(
    method: MethodRequest, errors: list[FieldError]
) -> tuple[str, BackboneFacts | None, BackboneFacts | None]:
    """Return the pair's name (or nothing), the student and the teacher."""
    is_alone = method.type is MethodType.ADAPTER
    if is_alone:
        why = "the method 'adapter' has none; use 'idat' or leave it out"
        _refuse_given(method, ("teacher", "distillation"), why, errors)
    if method.pair is not None:
        _refuse_given(method, ("student", "teacher"), "the pair names it already", errors)
        pair = PAIRS.get(method.pair)
        if pair is None:
            message = f"there is no pair {method.pair!r}; allowed: {_quoted(PAIRS)}"
            errors.append(FieldError("/method/pair", message, "unknown_pair"))
            return "", None, None
        teacher = None if is_alone else get_backbone(pair.teacher)
        return pair.name, get_backbone(pair.student), teacher
    return "", *_resolve_named(method, errors)


def _resolve_named(
    method: MethodRequest, errors: list[FieldError]
) -> tuple[BackboneFacts | None, BackboneFacts | None]:
    """Return the student and the teacher that a request names one by one."""
    if method.student is None:
        message = f"name a pair ({_quoted(PAIRS)}), or a student and a teacher"
        errors.append(FieldError("/method/pair", message, "required"))
        return None, None
    student = _find_network("student", method.student, errors)
    if method.type is MethodType.ADAPTER:
        return student, None
    if method.teacher is None:
        message = "the method 'idat' needs a teacher beside the student"
        errors.append(FieldError("/method/teacher", message, "required"))
        return student, None
    return student, _find_network("teacher", method.teacher, errors)


def _refuse_given(
    method: MethodRequest, names: tuple[str, ...], why: str, errors: list[FieldError]
) -> None:
    errors.extend(
        FieldError(f"/method/{name}", why, "not_allowed")
        for name in names
        if getattr(method, name) is not None
    )


def _find_network(role: str, name: str, errors: list[FieldError]) -> BackboneFacts | None:
    facts = find_backbone(name)
    if facts is None:
        allowed = _quoted(backbone.name for backbone in list_backbones())
        message = f"there is no backbone {name!r}; allowed: {allowed}"
        errors.append(FieldError(f"/method/{role}", message, "unknown_backbone"))
    return facts


def _check_hidden_dim(
    hidden_dim: int, networks: Iterable[BackboneFacts | None], errors: list[FieldError]
) -> None:
    for facts in networks:
        if facts is not None and hidden_dim > min(facts.block_widths):
            message = (
                f"{hidden_dim} is more than {min(facts.block_widths)}, the width of the narrowest "
                f"block of {facts.name}: the adapter would be no bottleneck"
            )
            errors.append(FieldError("/method/adapter/hidden_dim", message, "out_of_range"))
            return


def _check_official(request: JobRequest, errors: list[FieldError]) -> None:
    fixed = {
        "epochs": OFFICIAL_EPOCHS,
        "batch_size": OFFICIAL_BATCH_SIZE,
        "warmup_epochs": OFFICIAL_WARMUP_EPOCHS,
    }
    for name, value in fixed.items():
        given = getattr(request.hyperparameters, name)
        if given not in (None, value):
            message = f"the official recipe fixes it at {value}; leave it out or use 'default'"
            errors.append(FieldError(f"/hyperparameters/{name}", message, "recipe_conflict"))


def _resolve_figures(wanted: list[FigureRequest], errors: list[FieldError]) -> list[dict[str, Any]]:
    """Return every figure with the options that were given for it."""
    figures: dict[str, dict[str, Any]] = {}
    for index, request in enumerate(wanted):
        pointer, name = f"/figures/{index}", request.name
        if name not in set(FigureName):
            allowed = _quoted(figure.value for figure in FigureName)
            message = f"there is no figure {name!r}; allowed: {allowed}"
            errors.append(FieldError(pointer, message, "unknown_figure"))
            continue
        if name in figures:
            message = f"{name!r} is asked for twice; a model has one figure of each name"
            errors.append(FieldError(pointer, message, "duplicate"))
            continue
        options = request.model_dump(exclude={"name"}, exclude_none=True)
        for option in options.keys() - FIGURES[FigureName(name)].options.keys():
            message = f"the figure {name!r} has no such option"
            errors.append(FieldError(f"{pointer}/{option}", message, "not_allowed"))
        figures[name] = {"name": name, **options}
    return list(figures.values())


def _count_one(spec: JobSpec, name: str, num_classes: int) -> TrainableParameters:
    facts = get_backbone(name)
    adapter = adapter_parameters(facts, AdapterKind(spec.adapter_kind), spec.hidden_dim)
    head = head_parameters(facts, num_classes)
    return TrainableParameters(adapter=adapter, head=head, total=adapter + head)


def _first(given: Value | None, default: Value) -> Value:
    return default if given is None else given


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _invalid(errors: list[FieldError]) -> InvalidError:
    first = errors[0]
    more = f" (and {len(errors) - 1} more; see errors)" if len(errors) > 1 else ""
    return InvalidError(f"{first.pointer}: {first.message}{more}", fields=tuple(errors))
