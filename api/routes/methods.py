"""What can be trained: pairs, networks, adapters, losses, recipes, defaults, limits."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query

from api.deps import SettingsDep
from api.job_requests.adapters import default_hidden_dim
from api.job_requests.counts import count_model
from api.job_requests.schedule import (
    OFFICIAL_BATCH_SIZE,
    OFFICIAL_COOLDOWN_EPOCHS,
    OFFICIAL_EPOCHS,
    OFFICIAL_WARMUP_EPOCHS,
)
from api.schemas.jobs import (
    AdapterRequest,
    DistillationRequest,
    HyperparametersRequest,
    MethodRequest,
    TrainableByRole,
)
from api.schemas.methods import AdapterInfo, BackboneInfo, LossInfo, Methods, PairInfo
from api.schemas.problems import problems
from core.catalog.adapters import ADAPTERS, AdapterFacts, find_refusal
from core.catalog.backbones import BackboneFacts, get_backbone, list_backbones
from core.catalog.figures import FIGURES
from core.catalog.methods import DistillationLoss, MethodType, Precision, Recipe
from core.catalog.pairs import PAIRS, Pair, PairDefaults
from core.catalog.recipes import DATASET_RECIPES

router = APIRouter(prefix="/v1/fine_tuning/methods", tags=["fine-tuning"])

_LOSSES = {
    DistillationLoss.MSE: ("Mean squared difference of the raw logits (Eq. 3).", []),
    DistillationLoss.KL: (
        "KL(teacher ‖ student) of the tempered softmaxes (Eq. 4 as the paper's code computes it).",
        ["temperature", "squared_temperature", "direction"],
    ),
    DistillationLoss.COSINE: ("One minus the cosine of the raw logits.", []),
    DistillationLoss.MAE: ("Mean absolute difference of the raw logits.", []),
    DistillationLoss.FEATURE: (
        "Mean squared difference of block outputs through a learnt linear bridge (FitNets).",
        ["layers", "tokens"],
    ),
}
_OF_EVERY_LOSS = ["weight", "detach_teacher"]
_OFFICIAL = {
    "epochs": OFFICIAL_EPOCHS,
    "warmup_epochs": OFFICIAL_WARMUP_EPOCHS,
    "cooldown_epochs": OFFICIAL_COOLDOWN_EPOCHS,
    "batch_size": OFFICIAL_BATCH_SIZE,
    "drop_last": True,
}


@router.get("", responses=problems(422))
def get_methods(
    settings: SettingsDep,
    num_classes: Annotated[
        int, Query(ge=2, le=100_000, description="For the counts of trainable parameters.")
    ] = 100,
    hidden_dim: Annotated[
        int | None, Query(ge=1, le=4096, description="Likewise; absent: each kind's default.")
    ] = None,
) -> Methods:
    """Show what a job may name and what it may leave out."""
    return Methods(
        methods=list(MethodType),
        pairs=[_show_pair(pair, num_classes, hidden_dim) for pair in PAIRS.values()],
        backbones=[_show_backbone(facts) for facts in list_backbones()],
        adapters=[_show_adapter(facts) for facts in ADAPTERS.values()],
        distillation_losses=[
            LossInfo(loss=loss, summary=summary, options=_OF_EVERY_LOSS + options)
            for loss, (summary, options) in _LOSSES.items()
        ],
        precisions=list(Precision),
        recipes=_show_recipes(),
        figures={
            name.value: {"summary": facts.summary, "options": dict(facts.options)}
            for name, facts in FIGURES.items()
        },
        defaults={
            "method": MethodRequest().type,
            "adapter": {"kind": PairDefaults().adapter_kind},
            "distillation": DistillationRequest().model_dump(),
        },
        limits={
            "hyperparameters": _find_bounds(HyperparametersRequest),
            "adapter": _find_bounds(AdapterRequest),
            "distillation": _find_bounds(DistillationRequest),
            "archive": {
                "max_bytes": settings.max_archive_bytes,
                "max_files": settings.max_archive_files,
                "max_image_bytes": settings.max_image_bytes,
                "max_image_pixels": settings.max_image_pixels,
            },
        },
    )


def _show_pair(pair: Pair, num_classes: int, hidden_dim: int | None) -> PairInfo:
    return PairInfo(
        name=pair.name,
        summary=pair.summary,
        student=pair.student,
        teacher=pair.teacher,
        defaults=asdict(pair.defaults),
        trainable_parameters={
            kind: _count(facts, pair, num_classes, hidden_dim) for kind, facts in ADAPTERS.items()
        },
    )


def _count(
    kind: AdapterFacts, pair: Pair, num_classes: int, hidden_dim: int | None
) -> TrainableByRole | None:
    networks = [get_backbone(pair.student), get_backbone(pair.teacher)]
    size = default_hidden_dim(kind, pair.defaults, networks)
    if hidden_dim is not None and kind.hidden_dim_means is not None:
        narrowest = min(min(network.block_widths) for network in networks)
        if hidden_dim % kind.multiple_of or (kind.is_bottleneck and hidden_dim > narrowest):
            return None
        size = hidden_dim
    if any(find_refusal(kind.kind, network) for network in networks):
        return None
    counts = [count_model(network, kind.kind, size, num_classes) for network in networks]
    total = sum(count.total for count in counts)
    return TrainableByRole(student=counts[0], teacher=counts[1], total=total)


def _show_backbone(facts: BackboneFacts) -> BackboneInfo:
    refusals = {kind: find_refusal(kind, facts) for kind in ADAPTERS}
    return BackboneInfo(
        name=facts.name,
        family=facts.family,
        parameters=facts.parameters,
        depth=facts.depth,
        image_px=facts.image_px,
        mean=facts.mean,
        std=facts.std,
        max_hidden_dim=min(facts.block_widths),
        license=facts.license,
        license_note=facts.license_note,
        unsupported_adapters={kind: reason for kind, reason in refusals.items() if reason},
    )


def _show_adapter(facts: AdapterFacts) -> AdapterInfo:
    return AdapterInfo(
        kind=facts.kind,
        summary=facts.summary,
        source=facts.source,
        hidden_dim_means=facts.hidden_dim_means,
        default_hidden_dim=facts.hidden_dim,
        default_scale=facts.scale,
        default_learning_rate=facts.learning_rate,
        default_weight_decay=facts.weight_decay,
        mergeable=facts.mergeable,
    )


def _show_recipes() -> dict[str, dict[str, Any]]:
    recipes: dict[str, dict[str, Any]] = {
        Recipe.DEFAULT.value: {"cooldown_epochs": 0, "drop_last": False},
        Recipe.OFFICIAL.value: dict(_OFFICIAL),
    }
    for recipe in DATASET_RECIPES.values():
        recipes[recipe.name] = _OFFICIAL | {
            "num_classes": recipe.num_classes,
            "learning_rate": recipe.learning_rate,
            "weight_decay": recipe.weight_decay,
            "drop_path": recipe.drop_path,
        }
    return recipes


def _find_bounds(
    schema: type[HyperparametersRequest | AdapterRequest | DistillationRequest],
) -> dict[str, dict[str, float]]:
    """Return the bounds of a request's numbers, from the very schema that enforces them."""
    names = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
    bounds = {}
    for field, described in schema.model_json_schema()["properties"].items():
        found = {
            name: part[name]
            for part in [described, *described.get("anyOf", [])]
            for name in names
            if name in part
        }
        if found:
            bounds[field] = found
    return bounds
