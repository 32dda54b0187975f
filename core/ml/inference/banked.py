"""The seam behind which a kind of adapter can be served from a bank.

A bank holds the adapters of many models of one kind as rows of one tensor. That is exact for kinds
whose part in the network is a function of tensors that may differ from image to image. Which kinds
those are says `banked_kinds`; the others are served one model at a time.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from core.ml.adapters.base import AdapterSpec
from core.ml.backbones.load import LoadedBackbone
from core.ml.inference.rows import Rows

#: Gives the adapters of the batch that runs now.
ReadRows = Callable[[], Rows]

_BUCKETS = (8, 16, 64)


class BankedMethod(ABC):
    """One kind of adapter in a bank.

    With the zero row the network is the bare one.

    Attributes:
        allows_trimming: as in `AdapterMethod`; False for kinds that reach into attention.
    """

    allows_trimming: bool = True

    def find_bucket(self, backbone: LoadedBackbone, spec: AdapterSpec) -> int | None:  # noqa: ARG002 - some kinds ask the network
        """Return the hidden dimension that models like this one are padded to; None: no bank."""
        return choose_bucket(spec.hidden_dim)

    @abstractmethod
    def lay_out(self, backbone: LoadedBackbone, bucket: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of one model's tensors in a bank of that hidden dimension."""

    @abstractmethod
    def pack(
        self, backbone: LoadedBackbone, spec: AdapterSpec, state: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return one model's tensors under the names of `lay_out`, fp32.

        They may be smaller than their places; what is missing is 0 there, which must not change
        what the adapter computes.

        Args:
            backbone: the network.
            spec: kind, size and scale.
            state: adapters and head by their names in a bundle, checked.
        """

    @abstractmethod
    def attach(self, backbone: LoadedBackbone, read: ReadRows) -> list[RemovableHandle]:
        """Hook the kind into the network; removing the handles leaves it as it was."""


def choose_bucket(hidden_dim: int) -> int:
    """Return the size that adapters of `hidden_dim` are padded to: 8, 16, 64, 128, 256, …; or 0.

    Padding costs products with zeros, different sizes cost batches that cannot be mixed.
    """
    if hidden_dim == 0:
        return 0
    for bucket in _BUCKETS:
        if hidden_dim <= bucket:
            return bucket
    return 1 << (hidden_dim - 1).bit_length()
