"""One resident backbone: the banks on it, the heads behind it, and whose turn it is."""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.catalog.methods import AdapterKind, Precision
from core.ml.adapters.adapted import AdaptedModel
from core.ml.backbones.load import LoadedBackbone
from core.ml.backbones.normalise import normalise_images
from core.ml.inference.bank import Bank
from core.ml.inference.cores import Cores, use_cores
from core.ml.inference.fitting import Fitting
from core.ml.inference.graphs import GraphedBank
from core.ml.inference.heads import Heads
from core.ml.inference.self_check import is_exact
from core.ml.inference.turns import Turns

logger = logging.getLogger(__name__)

#: uint8 (px, px, 3), or float32 (3, px, px) that is normalised already.
Pixels = NDArray[np.uint8] | NDArray[np.float32]


class Mountable(Protocol):
    """What can answer on a backbone: a bank, or one model by itself."""

    #: whether `run` may be called from several threads at once
    is_shareable: bool

    def mount(self, stack: ExitStack) -> None:
        """Attach to the network until `stack` is closed."""

    def run(self, slots: Sequence[int], images: Tensor) -> Tensor:
        """Return pooled features of images; mounted."""


class Single:
    """A model of a kind without a bank, attached to the network for its own batches."""

    is_shareable = False  # it attaches itself to the network, for all threads alike

    def __init__(self, model: AdaptedModel) -> None:
        self._model = model

    def mount(self, stack: ExitStack) -> None:
        """Do nothing: the model attaches itself in every forward."""

    def run(self, slots: Sequence[int], images: Tensor) -> Tensor:  # noqa: ARG002 - it has none
        """Return pooled features, fp32."""
        return self._model.features(images)


class Host:
    """A backbone that stays in memory.

    Args:
        backbone: in its place and number format.
        precision: that format.
        cores: how many of a CPU it may use; 1 elsewhere.
    """

    def __init__(self, backbone: LoadedBackbone, precision: Precision, cores: int) -> None:
        self.backbone = backbone
        self.precision = precision
        self.fitting = Fitting(backbone)
        self.heads = Heads(backbone.num_features, backbone.device)
        self._count = cores
        self._cores = Cores(cores)
        self._turns = Turns()
        self._lock = threading.Lock()
        self._banks: dict[tuple[AdapterKind, int], Bank | None] = {}
        self._mounted: Mountable | None = None
        self._mount = ExitStack()
        self._lock_of_mount = threading.Lock()

    def bank_sizes(self) -> Mapping[tuple[AdapterKind, int], int]:
        """Return the bytes of every bank, by kind and bucket."""
        with self._lock:
            return {key: bank.slots.size_bytes for key, bank in self._banks.items() if bank}

    def find_bank(self, kind: AdapterKind, bucket: int) -> Bank | None:
        """Return a bank, made if it is not there yet; None if it does not compute what it should.

        A new bank is tried before anybody uses it: a family of networks that nobody thought of
        costs speed, never a wrong answer.
        """
        with self._lock:
            if (kind, bucket) in self._banks:
                return self._banks[kind, bucket]
            build = GraphedBank if self.backbone.device.type == "cuda" else Bank
            bank = build(self.backbone, kind, bucket)
            with self.alone():
                exact = is_exact(bank, self.backbone, kind, bucket)
            if not exact:
                logger.warning(
                    "%s in %s is served one model at a time: its bank failed the self-check",
                    kind.value,
                    self.backbone.name,
                )
            self._banks[kind, bucket] = bank if exact else None
            return self._banks[kind, bucket]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run the body with the network to itself, nothing attached, and no gradients."""
        with self._turns.take(), torch.no_grad():
            self._unmount()
            yield

    def run(
        self,
        mountable: Mountable,
        slots: Sequence[int],
        images: Tensor,
        cores: int | None = None,
    ) -> Tensor:
        """Return pooled features, fp32 (batch, num_features), when it is this batch's turn.

        Args:
            mountable: the bank of all models in the batch, or the one model. Batches of one bank
                run side by side if they are asked for side by side.
            slots: of every image.
            images: normalised, in the backbone's format, on its device.
            cores: how many this batch may use, others have the rest; None: all, in parts.
        """
        if not mountable.is_shareable:  # then it is alone, and so are its cores
            with self._turns.take(), torch.no_grad():
                self._mount_if_needed(mountable)
                if self.backbone.device.type == "cpu":
                    use_cores(self._count)
                return mountable.run(slots, images).float()
        with self._turns.take(sharing=mountable), torch.no_grad():
            self._mount_if_needed(mountable)
            return self._cores.run(mountable.run, slots, images, cores).float()

    def forget(self, mountable: Mountable) -> None:
        """Let go of what will not run again."""
        with self._turns.take():
            if self._mounted is mountable:
                self._unmount()

    def normalise(self, pixels: Sequence[Pixels]) -> Tensor:
        """Return images as the network reads them, on its device."""
        raw = [index for index, image in enumerate(pixels) if image.dtype == np.uint8]
        if len(raw) == len(pixels):
            return self._normalise_raw(pixels)
        px = self.backbone.image_px
        images = np.zeros((len(pixels), 3, px, px), dtype=np.float32)
        for index, image in enumerate(pixels):
            if image.dtype == np.float32:
                images[index] = image
        batch = torch.from_numpy(images).to(self.backbone.device, self.backbone.dtype)
        if raw:
            batch[raw] = self._normalise_raw([pixels[index] for index in raw])
        return batch

    def _normalise_raw(self, pixels: Sequence[Pixels]) -> Tensor:
        batch = torch.from_numpy(np.stack(pixels)).to(self.backbone.device)
        return normalise_images(batch, self.backbone)

    def _mount_if_needed(self, mountable: Mountable) -> None:
        with self._lock_of_mount:  # those who share a turn share the mount
            if self._mounted is not mountable:
                self._unmount()
                mountable.mount(self._mount)
                self._mounted = mountable

    def _unmount(self) -> None:
        self._mounted = None
        self._mount.close()
