"""What a job would train and how long: numbers that need no torch."""

import math

from api.job_requests.problems import build_error
from api.job_requests.schedule import OFFICIAL_COOLDOWN_EPOCHS
from api.schemas.jobs import TrainableByRole, TrainableParameters
from core.catalog.adapters import adapter_parameters
from core.catalog.backbones import BackboneFacts, get_backbone, head_parameters
from core.catalog.layers import match_layer
from core.catalog.methods import AdapterKind, DistillationLoss, Recipe
from core.catalog.rate_search import SEARCH_FACTORS, search_epochs
from core.errors import FieldError
from core.platform.jobs.specs import JobSpec


def count_trainable(spec: JobSpec, num_classes: int) -> TrainableByRole:
    """Return how many numbers training would change, from the table of backbone facts."""
    kind, hidden_dim = AdapterKind(spec.adapter_kind), spec.hidden_dim
    student_facts = get_backbone(spec.student)
    student = count_model(student_facts, kind, hidden_dim, num_classes)
    if spec.teacher is None:
        return TrainableByRole(student=student, teacher=None, total=student.total)
    if spec.teacher_adapter_kind is not None and spec.teacher_hidden_dim is not None:
        kind, hidden_dim = AdapterKind(spec.teacher_adapter_kind), spec.teacher_hidden_dim
    teacher_facts = get_backbone(spec.teacher)
    teacher = count_model(teacher_facts, kind, hidden_dim, num_classes)
    bridges = _count_bridges(spec, student_facts, teacher_facts)
    return TrainableByRole(
        student=student,
        teacher=teacher,
        distillation=bridges,
        total=student.total + teacher.total + bridges,
    )


def count_model(
    facts: BackboneFacts, kind: AdapterKind, hidden_dim: int, num_classes: int
) -> TrainableParameters:
    """Return the trainable numbers of one adapted model."""
    adapter = adapter_parameters(facts, kind, hidden_dim)
    head = head_parameters(facts, num_classes)
    return TrainableParameters(adapter=adapter, head=head, total=adapter + head)


def count_frozen(spec: JobSpec) -> dict[str, int]:
    """Return the sizes of the backbones, which training never changes."""
    names = {"student": spec.student, "teacher": spec.teacher}
    return {role: get_backbone(name).parameters for role, name in names.items() if name}


def count_steps(spec: JobSpec, train_images: int) -> int:
    """Return how many optimizer steps a job would take in all of its runs.

    Raises:
        InvalidError: none at all: the recipe drops the only batch there is.
    """
    per_epoch, cooldown = math.ceil(train_images / spec.batch_size), 0
    if spec.recipe != Recipe.DEFAULT:
        per_epoch, cooldown = train_images // spec.batch_size, OFFICIAL_COOLDOWN_EPOCHS
        if per_epoch == 0:
            message = (
                f"the {spec.recipe} recipe drops a last batch that is not full, and the dataset's "
                f"{train_images} training images do not fill one of {spec.batch_size}"
            )
            raise build_error([FieldError("/recipe", message, "dataset_too_small")])
    has_twin = spec.compare_baseline and spec.teacher is not None
    epochs = (1 + has_twin) * spec.seeds * (spec.epochs + cooldown)
    if spec.search_learning_rate:
        epochs += (1 + has_twin) * len(SEARCH_FACTORS) * search_epochs(spec.epochs)
    return per_epoch * epochs


def _count_bridges(spec: JobSpec, student: BackboneFacts, teacher: BackboneFacts) -> int:
    if spec.loss != DistillationLoss.FEATURE:
        return 0
    layers = [student.depth - 1] if spec.layers is None else spec.layers
    count = 0
    for layer in layers:
        match = match_layer(layer, student.depth, teacher.depth)
        count += (student.block_widths[layer] + 1) * teacher.block_widths[match]
    return count
