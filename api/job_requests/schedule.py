"""How long, how fast: the recipe and the hyperparameters."""

from dataclasses import dataclass

from api.job_requests.problems import quote
from api.schemas.jobs import JobRequest
from core.catalog.adapters import AdapterFacts
from core.catalog.methods import Recipe
from core.catalog.pairs import PairDefaults
from core.catalog.recipes import DATASET_RECIPES, DatasetRecipe
from core.errors import FieldError

#: The released code's schedule, 10 epochs of cooldown not counted.
OFFICIAL_EPOCHS = 100
OFFICIAL_WARMUP_EPOCHS = 10
OFFICIAL_COOLDOWN_EPOCHS = 10
OFFICIAL_BATCH_SIZE = 64
_WARMUP_SHARE = 10


@dataclass(frozen=True)
class Schedule:
    """The hyperparameters with nothing left open; see `JobSpec`."""

    recipe: str
    epochs: int
    warmup_epochs: int
    batch_size: int
    learning_rate: float
    search_learning_rate: bool
    weight_decay: float
    drop_path: float


def resolve_schedule(
    request: JobRequest, defaults: PairDefaults, kind: AdapterFacts, errors: list[FieldError]
) -> Schedule:
    """Return what a request's recipe and hyperparameters mean.

    What is given comes before what the recipe says, that before the default of the adapter's kind,
    and that before the pair's; but no schedule of a recipe can be changed.
    """
    given = request.hyperparameters
    dataset = _find_recipe(request.recipe, errors)
    if request.recipe == Recipe.DEFAULT:
        epochs = defaults.epochs if given.epochs is None else given.epochs
        batch_size = defaults.batch_size if given.batch_size is None else given.batch_size
        warmup_epochs = given.warmup_epochs
        if warmup_epochs is None:
            warmup_epochs = epochs // _WARMUP_SHARE
        if warmup_epochs > epochs:
            message = f"{warmup_epochs} epochs of warm-up do not fit into {epochs} epochs"
            errors.append(FieldError("/hyperparameters/warmup_epochs", message, "out_of_range"))
    else:
        _check_fixed(request, errors)
        epochs, batch_size = OFFICIAL_EPOCHS, OFFICIAL_BATCH_SIZE
        warmup_epochs = OFFICIAL_WARMUP_EPOCHS
    search = given.learning_rate == "auto"
    rates = (
        None if given.learning_rate == "auto" else given.learning_rate,
        dataset.learning_rate if dataset else None,
        kind.learning_rate,
        defaults.learning_rate,
    )
    decays = (
        given.weight_decay,
        dataset.weight_decay if dataset else None,
        kind.weight_decay,
        defaults.weight_decay,
    )
    drop_paths = (given.drop_path, dataset.drop_path if dataset else None, 0.0)
    return Schedule(
        recipe=request.recipe,
        epochs=epochs,
        warmup_epochs=warmup_epochs,
        batch_size=batch_size,
        learning_rate=_first(rates),
        search_learning_rate=search,
        weight_decay=_first(decays),
        drop_path=_first(drop_paths),
    )


def _find_recipe(name: str, errors: list[FieldError]) -> DatasetRecipe | None:
    if name in set(Recipe):
        return None
    if name not in DATASET_RECIPES:
        message = f"there is no recipe {name!r}; allowed: {quote([*Recipe, *DATASET_RECIPES])}"
        errors.append(FieldError("/recipe", message, "unknown_recipe"))
    return DATASET_RECIPES.get(name)


def _check_fixed(request: JobRequest, errors: list[FieldError]) -> None:
    fixed = {
        "epochs": OFFICIAL_EPOCHS,
        "batch_size": OFFICIAL_BATCH_SIZE,
        "warmup_epochs": OFFICIAL_WARMUP_EPOCHS,
    }
    for name, value in fixed.items():
        given = getattr(request.hyperparameters, name)
        if given not in (None, value):
            message = (
                f"the {request.recipe} recipe fixes it at {value}; leave it out or use 'default'"
            )
            errors.append(FieldError(f"/hyperparameters/{name}", message, "recipe_conflict"))


def _first(values: tuple[float | None, ...]) -> float:
    return next(value for value in values if value is not None)
