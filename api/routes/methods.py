"""What can be trained: pairs, networks, adapters, losses, recipes, defaults, limits."""

from dataclasses import asdict

from fastapi import APIRouter

from api.deps import SettingsDep
from api.job_requests import (
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
)
from api.schemas.methods import BackboneInfo, Methods, PairInfo
from api.schemas.problems import problems
from core.catalog.backbones import list_backbones
from core.catalog.methods import AdapterKind, DistillationLoss, MethodType, Precision, Recipe
from core.catalog.pairs import PAIRS, PairDefaults

router = APIRouter(prefix="/v1/fine_tuning/methods", tags=["fine-tuning"])


@router.get("", responses=problems())
def get_methods(settings: SettingsDep) -> Methods:
    """Show what a job may name and what it may leave out."""
    return Methods(
        methods=list(MethodType),
        pairs=[
            PairInfo(
                name=pair.name,
                summary=pair.summary,
                student=pair.student,
                teacher=pair.teacher,
                defaults=asdict(pair.defaults),
            )
            for pair in PAIRS.values()
        ],
        backbones=[
            BackboneInfo(
                name=facts.name,
                family=facts.family,
                parameters=facts.parameters,
                depth=facts.depth,
                image_px=facts.image_px,
                max_hidden_dim=min(facts.block_widths),
                license=facts.license,
            )
            for facts in list_backbones()
        ],
        adapter_kinds=list(AdapterKind),
        distillation_losses=list(DistillationLoss),
        precisions=list(Precision),
        recipes={
            Recipe.DEFAULT: {"cooldown_epochs": 0, "drop_last": False},
            Recipe.OFFICIAL: {
                "epochs": OFFICIAL_EPOCHS,
                "warmup_epochs": OFFICIAL_WARMUP_EPOCHS,
                "cooldown_epochs": OFFICIAL_COOLDOWN_EPOCHS,
                "batch_size": OFFICIAL_BATCH_SIZE,
                "drop_last": True,
            },
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
