"""The service's side of a row: the job that is submitted for it, and what came of it."""

import dataclasses
import hashlib
import json
from typing import Any

from benchmarks.vtab.client import Client, Json
from benchmarks.vtab.methods import LINEAR_PROBE
from benchmarks.vtab.protocols import OK, Cell
from benchmarks.vtab.settings import Mode, Settings, Tuning
from core.catalog.methods import AdapterKind, Recipe
from core.catalog.recipes import DatasetRecipe
from core.errors import InvalidError


def check_settings(settings: Settings) -> Settings:
    """Return the settings as the service can follow them.

    Raises:
        InvalidError: it cannot.
    """
    if settings.mode is Mode.PAPER:
        raise InvalidError(
            "the mode 'paper' tests after every epoch, which the service does not do; leave out "
            "--service, or use the mode 'strict'"
        )
    if len(settings.learning_rates or ()) > 1:
        raise InvalidError(
            "a job has one learning rate: give one with --learning-rates, or leave it out for the "
            "recipe's; the grid is for runs without --service"
        )
    if settings.tuning is Tuning.COMMON and not settings.learning_rates:
        raise InvalidError(
            "with --service, --tuning common needs the one learning rate: --learning-rates 0.005"
        )
    if settings.schedule.is_official:
        return settings
    # What the service's own schedule does; see `Recipe.DEFAULT`.
    schedule = dataclasses.replace(settings.schedule, cooldown_epochs=0, drop_last=False)
    return dataclasses.replace(settings, schedule=schedule)


def _find_rate(settings: Settings, recipe: DatasetRecipe) -> float:
    return settings.learning_rates[0] if settings.learning_rates else recipe.learning_rate


def name_job(request: Json) -> str:
    """Return a name that this very request has, and no other."""
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    return f"job-{digest[:40]}"


def build_request(settings: Settings, cell: Cell, dataset_id: str) -> Json:
    """Return the body of `POST /v1/fine_tuning/jobs` for a row, with every setting explicit."""
    method = cell.method
    adapter: Json = {"kind": LINEAR_PROBE.name}
    if method.kind is not None:
        adapter = {"kind": method.kind.value, "hidden_dim": settings.hidden_dim}
    if method.kind in (AdapterKind.PARALLEL, AdapterKind.PARALLEL_SHARED):
        adapter["scale"] = settings.scale
    networks: Json = {"pair": settings.pair}
    if not settings.pair:
        networks = {"student": settings.student}
        if method.has_teacher:
            networks["teacher"] = settings.teacher
    chosen: Json = {"type": method.type.value, **networks, "adapter": adapter}
    if method.loss is not None:
        chosen["distillation"] = {
            "loss": method.loss.value,
            "weight": settings.loss_weight,
            "temperature": settings.temperature,
        }
    hyperparameters: Json = {
        "learning_rate": _find_rate(settings, cell.recipe),
        "weight_decay": settings.weight_decay(cell.recipe),
        "drop_path": settings.drop_path(cell.recipe, method),
        "precision": settings.precision,
    }
    if not settings.schedule.is_official:
        for name in ("epochs", "batch_size", "warmup_epochs"):
            hyperparameters[name] = getattr(settings.schedule, name)
    recipe = Recipe.OFFICIAL if settings.schedule.is_official else Recipe.DEFAULT
    return {
        "dataset_id": dataset_id,
        "name": f"{cell.recipe.name}-{method.name}-s{cell.seed}",
        "seed": cell.seed,
        "metadata": {"benchmark": "vtab"},
        "method": chosen,
        "recipe": recipe.value,
        "hyperparameters": hyperparameters,
    }


def describe_model(client: Client, job: Json) -> dict[str, Any]:
    """Return what a row says of a job that succeeded."""
    model = client.get_model(job["model_id"])
    config = client.get_config(job["model_id"])
    metrics = model["metrics"]
    epochs = client.list_metrics(job["id"])
    teacher = config.get("teacher") or {}
    trainable = {
        role: job["trainable_parameters"][role]
        for role in ("student", "teacher")
        if job["trainable_parameters"][role] is not None
    }
    used = {"student": config["backbone"]["weights_sha256"]}
    if teacher:
        used["teacher"] = teacher["weights_sha256"]
    return {
        "status": OK,
        "model_id": model["id"],
        "classes_in_service": len(model["classes"]),
        "epochs_run": len(epochs),
        "trainable_parameters": trainable,
        "weights_used": used,
        "precision_used": config.get("recipe", {}).get("precision"),
        "versions": config["versions"],
        "seconds": {"total": (job["finished_at"] or 0) - (job["started_at"] or 0)},
        "test": {
            "images": metrics["test_images"],
            "accuracy": metrics["test_accuracy"],
            "last_epoch_accuracy": None,  # the service tests the chosen epoch, and no other
            "teacher_accuracy": metrics["teacher_test_accuracy"],
            "chosen_epoch": metrics["best_epoch"],
            "val_accuracy": metrics["val_accuracy"],
            "last_val_accuracy": epochs[-1]["metrics"].get("val_accuracy") if epochs else None,
        },
    }


def explain(error: Any) -> str:  # noqa: ANN401 - JSON
    """Return the service's `error` object for people."""
    if isinstance(error, dict) and error:
        return f"{error.get('message', error)} ({error.get('code', 'no code')})"
    return str(error or "no reason was given")
