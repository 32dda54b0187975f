"""Which adapter a model gets: kind, size and scale, checked against its network."""

from dataclasses import dataclass

from api.schemas.jobs import AdapterRequest
from core.catalog.adapters import ADAPTERS, AdapterFacts, find_refusal
from core.catalog.backbones import BackboneFacts
from core.catalog.methods import AdapterKind
from core.catalog.pairs import PairDefaults
from core.errors import FieldError

#: The kinds that the pairs' defaults are about.
_OF_THE_PAPER = (AdapterKind.SEQUENTIAL, AdapterKind.PARALLEL, AdapterKind.PARALLEL_SHARED)
_NO_SCALE = 1.0


@dataclass(frozen=True)
class ResolvedAdapter:
    """An adapter with nothing left open.

    Attributes:
        kind: what it is.
        hidden_dim: its size, 0 where the kind has none.
        scale: its fixed factor; means nothing where the kind has none.
    """

    kind: AdapterKind
    hidden_dim: int
    scale: float

    @property
    def facts(self) -> AdapterFacts:
        """What is known of the kind."""
        return ADAPTERS[self.kind]


@dataclass(frozen=True)
class _Where:
    """The place in a request that is being read, and where its faults are collected."""

    pointer: str
    errors: list[FieldError]

    def refuse(self, field: str, message: str, code: str) -> None:
        self.errors.append(FieldError(f"{self.pointer}/{field}", message, code))


def resolve_adapter(
    request: AdapterRequest,
    defaults: PairDefaults,
    networks: list[BackboneFacts],
    pointer: str,
    errors: list[FieldError],
) -> ResolvedAdapter:
    """Return the adapter that a request means for some networks.

    Args:
        request: what was asked for.
        defaults: of the pair.
        networks: every network that it is put into.
        pointer: to the request, for the errors.
        errors: where they go.
    """
    kind = defaults.adapter_kind if request.kind is None else request.kind
    facts = ADAPTERS[kind]
    where = _Where(pointer, errors)
    for network in networks:
        refusal = find_refusal(kind, network)
        if refusal is not None:
            where.refuse("kind", refusal, "unsupported_adapter")
    return ResolvedAdapter(
        kind,
        _resolve_hidden_dim(request.hidden_dim, facts, defaults, networks, where=where),
        _resolve_scale(request.scale, facts, defaults, where=where),
    )


def default_hidden_dim(
    facts: AdapterFacts, defaults: PairDefaults, networks: list[BackboneFacts]
) -> int:
    """Return the size that is taken where none is asked for, never wider than a block."""
    if facts.hidden_dim_means is None:
        return 0
    wanted = defaults.hidden_dim if facts.kind in _OF_THE_PAPER else facts.hidden_dim
    if facts.is_bottleneck and networks:
        wanted = min(wanted, *(min(network.block_widths) for network in networks))
    return max(wanted - wanted % facts.multiple_of, facts.multiple_of)


def _resolve_hidden_dim(
    given: int | None,
    facts: AdapterFacts,
    defaults: PairDefaults,
    networks: list[BackboneFacts],
    *,
    where: _Where,
) -> int:
    if given is None:
        return default_hidden_dim(facts, defaults, networks)
    if facts.hidden_dim_means is None:
        message = f"{facts.kind.value} has no size; leave hidden_dim out"
        where.refuse("hidden_dim", message, "not_allowed")
        return 0
    if given % facts.multiple_of:
        message = f"{facts.kind.value} needs a multiple of {facts.multiple_of}, not {given}"
        where.refuse("hidden_dim", message, "out_of_range")
    for network in networks if facts.is_bottleneck else ():
        narrowest = min(network.block_widths)
        if given > narrowest:
            message = (
                f"{given} is more than {narrowest}, the width of the narrowest block of "
                f"{network.name}: the adapter would be no bottleneck; allowed: 1 to {narrowest}"
            )
            where.refuse("hidden_dim", message, "out_of_range")
            break
    return given


def _resolve_scale(
    given: float | None, facts: AdapterFacts, defaults: PairDefaults, *, where: _Where
) -> float:
    if facts.kind in _OF_THE_PAPER:
        # The sequential kind has none either, but requests for all three are written alike.
        return defaults.scale if given is None else given
    if facts.scale is None:
        if given is not None:
            message = f"{facts.kind.value} has no fixed scale; leave it out"
            where.refuse("scale", message, "not_allowed")
        return _NO_SCALE
    return facts.scale if given is None else given
