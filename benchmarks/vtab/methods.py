"""The ten methods of the benchmark: a linear probe, three plain adapters, six variants of iDAT."""

from collections.abc import Sequence
from dataclasses import dataclass

from core.catalog.methods import AdapterKind, DistillationLoss, MethodType
from core.errors import InvalidError


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: as the paper calls it.
        kind: where the adapters sit; None trains the head alone.
        loss: what ties student and teacher; None trains the student alone.
    """

    name: str
    kind: AdapterKind | None
    loss: DistillationLoss | None = None

    @property
    def has_teacher(self) -> bool:
        """Whether this is iDAT."""
        return self.loss is not None

    @property
    def type(self) -> MethodType:
        """The service's word for it."""
        return MethodType.IDAT if self.has_teacher else MethodType.ADAPTER


_PLACEMENTS = {
    "S": AdapterKind.SEQUENTIAL,
    "P": AdapterKind.PARALLEL,
    "PS": AdapterKind.PARALLEL_SHARED,
}

LINEAR_PROBE = Method("linear_probe", None)

#: By name, in the order of the paper's Table 3.
METHODS: dict[str, Method] = {
    LINEAR_PROBE.name: LINEAR_PROBE,
    **{
        method.name: method
        for letters, kind in _PLACEMENTS.items()
        for method in (
            Method(letters, kind),
            Method(f"iDAT-{letters}-kl", kind, DistillationLoss.KL),
            Method(f"iDAT-{letters}-mse", kind, DistillationLoss.MSE),
        )
    },
}


def find_methods(names: Sequence[str] | None) -> list[Method]:
    """Return the methods of these names in the table's order, all for None; any case will do.

    Raises:
        InvalidError: for an unknown name.
    """
    if names is None:
        return list(METHODS.values())
    known = {name.casefold(): name for name in METHODS}
    unknown = [name for name in names if name.casefold() not in known]
    if unknown:
        raise InvalidError(f"there is no method {unknown[0]!r}; allowed: {', '.join(METHODS)}")
    wanted = {known[name.casefold()] for name in names}
    return [method for name, method in METHODS.items() if name in wanted]
