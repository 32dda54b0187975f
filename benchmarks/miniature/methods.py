"""The table's rows: a linear probe, plain adapters in three places, and iDAT with two losses."""

from dataclasses import dataclass

from core.catalog.methods import AdapterKind, DistillationLoss
from core.errors import InvalidError

#: The paper's letters for the places of an adapter.
PLACEMENTS = {
    "S": AdapterKind.SEQUENTIAL,
    "P": AdapterKind.PARALLEL,
    "PS": AdapterKind.PARALLEL_SHARED,
}


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        placement: S, P or PS; None for the linear probe.
        loss: of iDAT; None without a teacher.
    """

    placement: str | None
    loss: DistillationLoss | None

    @property
    def name(self) -> str:
        """How rows and the command line call it: `probe`, `plain-P`, `idat-P-mse`."""
        if self.placement is None:
            return "probe"
        if self.loss is None:
            return f"plain-{self.placement}"
        return f"idat-{self.placement}-{self.loss.value}"

    @property
    def kind(self) -> AdapterKind:
        """Where its adapters sit."""
        assert self.placement is not None, "a probe has no adapters"
        return PLACEMENTS[self.placement]

    @property
    def twin(self) -> "Method":
        """The plain adapters that this variant of iDAT is compared with."""
        return Method(self.placement, None)


PROBE = Method(None, None)
PLAIN = tuple(Method(placement, None) for placement in PLACEMENTS)
IDAT = tuple(
    Method(placement, loss)
    for placement in PLACEMENTS
    for loss in (DistillationLoss.MSE, DistillationLoss.KL)
)
METHODS = {method.name: method for method in (PROBE, *PLAIN, *IDAT)}


def get_method(name: str) -> Method:
    """Return the method of a name, also one that is no row of the table (`idat-S-cosine`).

    Raises:
        InvalidError: there is none of that name.
    """
    every = {*METHODS.values()} | {Method(p, loss) for p in PLACEMENTS for loss in DistillationLoss}
    by_name = {method.name: method for method in every}
    if name not in by_name:
        raise InvalidError(f"there is no method {name!r}; there are {', '.join(sorted(by_name))}")
    return by_name[name]
