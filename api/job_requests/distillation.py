"""What ties student and teacher: the options of the loss that was asked for."""

from api.job_requests.problems import quote
from api.schemas.jobs import DistillationRequest
from core.catalog.backbones import BackboneFacts
from core.catalog.methods import DistillationLoss, KlDirection
from core.errors import FieldError

_OPTIONS = {
    "squared_temperature": DistillationLoss.KL,
    "direction": DistillationLoss.KL,
    "layers": DistillationLoss.FEATURE,
    "tokens": DistillationLoss.FEATURE,
}
_POINTER = "/method/distillation"
#: What asks for the paper's Eq. 4 to the letter.
_LITERAL = frozenset({"literal", "paper", "eq4"})


def check_distillation(
    request: DistillationRequest, student: BackboneFacts | None, errors: list[FieldError]
) -> None:
    """Refuse options of other losses, unknown directions and layers that are not there."""
    for option, loss in _OPTIONS.items():
        if option in request.model_fields_set and request.loss is not loss:
            message = (
                f"only the loss {loss.value!r} has it, not {request.loss.value!r}; leave it out"
            )
            errors.append(FieldError(f"{_POINTER}/{option}", message, "not_allowed"))
    _check_direction(request.direction, errors)
    layers = request.layers or []
    if len(set(layers)) < len(layers):
        errors.append(FieldError(f"{_POINTER}/layers", "a layer is named twice", "duplicate"))
    for layer in layers:
        if student is not None and layer >= student.depth:
            message = f"{student.name} has blocks 0 to {student.depth - 1}, not {layer}"
            errors.append(FieldError(f"{_POINTER}/layers", message, "out_of_range"))
            break


def _check_direction(direction: str, errors: list[FieldError]) -> None:
    if direction in set(KlDirection):
        return
    allowed = f"allowed: {quote(KlDirection)}"
    message = f"there is no direction {direction!r}; {allowed}"
    if direction in _LITERAL:
        message = (
            "the paper's Eq. 4 to the letter weighs the logarithms with an un-tempered softmax: it "
            "is no divergence, can be negative, and is not what the paper's code computes; "
            f"{allowed}"
        )
    errors.append(FieldError(f"{_POINTER}/direction", message, "unknown_direction"))
