"""Which networks a request means: a named pair, or timm names one by one."""

from api.job_requests.problems import quote
from api.schemas.jobs import MethodRequest
from core.catalog.backbones import BackboneFacts, explain_unknown, find_backbone, get_backbone
from core.catalog.methods import MethodType
from core.catalog.pairs import PAIRS
from core.errors import FieldError


def resolve_backbones(
    method: MethodRequest, errors: list[FieldError]
) -> tuple[str, BackboneFacts | None, BackboneFacts | None]:
    """Return the pair's name (or nothing), the student and the teacher."""
    is_alone = method.type is MethodType.ADAPTER
    if is_alone:
        why = "the method 'adapter' has none; use 'idat' or leave it out"
        _refuse_given(method, ("teacher", "teacher_adapter", "distillation"), why, errors)
    if method.pair is not None:
        _refuse_given(method, ("student", "teacher"), "the pair names it already", errors)
        pair = PAIRS.get(method.pair)
        if pair is None:
            message = f"there is no pair {method.pair!r}; allowed: {quote(PAIRS)}"
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
        message = f"name a pair ({quote(PAIRS)}), or a student and a teacher"
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
        message = f"{explain_unknown(name)}; GET /v1/fine_tuning/methods lists a choice"
        errors.append(FieldError(f"/method/{role}", message, "unknown_backbone"))
    return facts
