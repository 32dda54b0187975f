"""Answer for thousands of models with one resident backbone each kind of network.

Models of one kind of adapter and one bucket of hidden dimensions lie in a bank and are mixed freely
in a batch; kinds that have no bank are served one model at a time on the same backbone. The engine
has no threads, no queue and no clock: who waits for whom is decided above it.
"""

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.catalog.methods import AdapterKind, Precision
from core.errors import InvalidError
from core.ml.backbones.load import LoadedBackbone, load_backbone
from core.ml.backbones.packed_linear import release_unread_weights
from core.ml.data.preprocess import PREPROCESS_VERSION
from core.ml.export.bundle import Bundle, restore_model
from core.ml.inference.bank import Bank, find_bucket
from core.ml.inference.cores import use_cores
from core.ml.inference.heads import NO_HEAD, HeadSlot
from core.ml.inference.host import Host, Mountable, Pixels, Single
from core.ml.inference.self_check import golden_batch

logger = logging.getLogger(__name__)

MAX_BATCH = 64
_COLOURS = 3


@dataclass(frozen=True, eq=False)
class Resident:
    """A model that is ready to answer.

    Attributes:
        key: SHA-256 of its adapter file and of its `config.json`, empty for a bare backbone.
        batch_key: models with equal ones can be mixed in one forward.
        backbone: timm name.
        image_px: side of its images.
        preprocess_version: of the preprocessing that its images go through.
        classes: names, in the order of the logits; empty for a bare backbone.
        num_features: width of the pooled features.
        size_bytes: what evicting it frees.
    """

    key: tuple[str, str]
    batch_key: Hashable
    backbone: str
    image_px: int
    preprocess_version: int
    classes: tuple[str, ...]
    num_features: int
    size_bytes: int
    _home: Mountable
    _slot: int
    _head: HeadSlot


@dataclass(frozen=True, eq=False)
class Output:
    """The answer to one image.

    Attributes:
        logits: fp32 (classes,).
        features: fp32 (num_features,), what the head reads.
    """

    logits: NDArray[np.float32]
    features: NDArray[np.float32]


class Engine:
    """Resident backbones and the models on them.

    Any thread may call anything. Batches on one backbone take turns; on a CPU those of one batch
    key run side by side, each on the cores that it is told.

    Args:
        device: where the networks run.
        precision: of frozen weights, activations and banked adapters; heads are fp32.
        weights_dir: folder with backbone weights, searched before the hub.
        max_batch: most images in a forward.
        load: gives a frozen backbone by name; for tests and benchmarks.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        precision: Precision,
        weights_dir: Path | None = None,
        max_batch: int = MAX_BATCH,
        load: Callable[[str], LoadedBackbone] | None = None,
    ) -> None:
        self._device = device
        self._precision = precision
        self._max_batch = max_batch
        self._load = load or (lambda name: load_backbone(name, weights_dir=weights_dir))
        # Asked now: it becomes whatever some thread was last told to use.
        self._cores = torch.get_num_threads() if device.type == "cpu" else 1
        self._lock = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}
        self._hosts: dict[str, Host] = {}
        self._bases: dict[str, Resident] = {}
        self._residents: set[Resident] = set()

    @property
    def cores(self) -> int:
        """How many batches can run side by side: cores of a CPU, 1 elsewhere."""
        return self._cores

    def prepare(self, backbone: str) -> None:
        """Load a backbone, warm it up, and see that it computes here what it is.

        Raises:
            UnknownBackboneError: timm has no such network.
            WeightsUnavailableError: its weights are not here.
            UnsupportedBackboneError: adapters have no place in it.
        """
        self._get_host(backbone)

    def list_backbones(self) -> list[str]:
        """Return the names of the resident backbones."""
        with self._lock:
            return list(self._hosts)

    def bank_bytes(self, backbone: str) -> int:
        """Return the bytes that adapters and heads on a resident backbone take, free slots too."""
        with self._lock:
            host = self._hosts[backbone]
        return sum(host.bank_sizes().values()) + host.heads.size_bytes

    def admit(self, bundle: Bundle) -> Resident:
        """Make a model ready, its backbone too if need be.

        Raises:
            WeightsMismatchError: the backbone here is not the one that it was trained on.
            CertificateError: it does not answer here as it did where it was trained.
            AdapterStateError: its tensors do not fit the network.
            UnsupportedAdapterError: its kind has no place in the network.
            WeightsUnavailableError: the backbone cannot be loaded.
        """
        host = self._get_host(bundle.backbone.name)
        host.fitting.check(bundle)
        resident = self._place(bundle, host)
        try:
            self._check_certificate(bundle, host, resident)
        except BaseException:
            self._remove(resident, host)
            raise
        with self._lock:
            self._residents.add(resident)
        return resident

    def evict(self, resident: Resident) -> None:
        """Free what a model takes; a second time does nothing.

        None of its images may be in `forward`.
        """
        with self._lock:
            if resident not in self._residents:
                return
            self._residents.remove(resident)
            host = self._hosts[resident.backbone]
        self._remove(resident, host)

    def base(self, backbone: str) -> Resident:
        """Return the bare backbone as a resident without classes: its features are embeddings.

        It is never evicted. Raises what `prepare` does.
        """
        self._get_host(backbone)
        with self._lock:
            return self._bases[backbone]

    def forward(
        self, residents: Sequence[Resident], pixels: Sequence[Pixels], cores: int | None = None
    ) -> list[Output]:
        """Answer a batch in which every image has a model of its own.

        Args:
            residents: of every image, all with the same `batch_key`.
            pixels: as many images, uint8 (px, px, 3) from `preprocess` or float32 (3, px, px) that
                are normalised already.
            cores: how many of a CPU this batch may use, while others use the rest; None: all.

        Raises:
            InvalidError: an image has another size, or a model is not resident.
        """
        self._check_batch(residents, pixels)
        with self._lock:
            host = self._hosts[residents[0].backbone]
            gone = [r for r in residents if r not in self._residents and r.classes]
        if gone:
            raise InvalidError(f"model {gone[0].key[0][:12]} is not resident", code="not_resident")
        if cores is not None and self._device.type == "cpu":
            use_cores(cores)  # normalising is work as well
        return _answer(host, residents, host.normalise(pixels), cores)

    def _check_batch(self, residents: Sequence[Resident], pixels: Sequence[Pixels]) -> None:
        if not 1 <= len(pixels) <= self._max_batch or len(residents) != len(pixels):
            raise InvalidError(
                f"a batch has 1 to {self._max_batch} images and a model for each, not "
                f"{len(pixels)} and {len(residents)}"
            )
        if any(resident.batch_key != residents[0].batch_key for resident in residents):
            raise InvalidError("models of different batch keys cannot be mixed in a batch")
        px = residents[0].image_px
        for index, image in enumerate(pixels):
            shape = (px, px, _COLOURS) if image.dtype == np.uint8 else (_COLOURS, px, px)
            if image.dtype not in (np.uint8, np.float32) or image.shape != shape:
                raise InvalidError(
                    f"image {index} is {image.dtype} {image.shape}, not uint8 ({px}, {px}, 3) or "
                    f"normalised float32 (3, {px}, {px})"
                )

    def _get_host(self, name: str) -> Host:
        """Return a resident backbone; the first caller loads it, the others wait for that."""
        with self._lock:
            host = self._hosts.get(name)
            loading = self._loading.setdefault(name, threading.Lock())
        if host is not None:
            return host
        with loading:
            with self._lock:
                host = self._hosts.get(name)
            if host is not None:
                return host
            backbone = self._load(name)
            backbone.place(device=self._device, precision=self._precision, for_training=False)
            host = Host(backbone, self._precision, self._cores)
            base = self._build_base(host)
            image = golden_batch(backbone)[:1]
            release_unread_weights(backbone.module, lambda: _answer(host, [base], image))
            with self._lock:
                self._hosts[name], self._bases[name] = host, base
            return host

    def _build_base(self, host: Host) -> Resident:
        backbone = host.backbone
        bank = host.find_bank(AdapterKind.LINEAR_PROBE, 0)
        if bank is None:
            raise InvalidError(
                f"{backbone.name} does not compute the same twice on this machine; it is not "
                "served",
                code="self_check_failed",
            )
        return Resident(
            key=("", ""),
            batch_key=(backbone.name, AdapterKind.LINEAR_PROBE.value, 0),
            backbone=backbone.name,
            image_px=backbone.image_px,
            preprocess_version=PREPROCESS_VERSION,
            classes=(),
            num_features=backbone.num_features,
            size_bytes=0,
            _home=bank,
            _slot=0,
            _head=NO_HEAD,
        )

    def _place(self, bundle: Bundle, host: Host) -> Resident:
        name, spec = bundle.backbone.name, bundle.spec
        bucket = find_bucket(host.backbone, spec)
        bank = None if bucket is None else host.find_bank(spec.kind, bucket)
        key = (bundle.sha256, bundle.config_sha256)
        home: Mountable
        batch_key: Hashable
        if bank is None:
            model = restore_model(bundle, host.backbone)
            home, slot, batch_key = Single(model), 0, (name, *key)
            size_bytes = sum(p.nbytes for p in model.adapters.parameters())
        else:
            home, slot = bank, bank.take(spec, bundle.state)
            batch_key, size_bytes = (name, spec.kind.value, bucket), bank.slots.row_bytes
        head = host.heads.take(bundle.state["head.weight"], bundle.state["head.bias"])
        return Resident(
            key=key,
            batch_key=batch_key,
            backbone=name,
            image_px=bundle.backbone.image_px,
            preprocess_version=bundle.backbone.preprocess_version,
            classes=bundle.classes,
            num_features=host.backbone.num_features,
            size_bytes=size_bytes + head.size_bytes,
            _home=home,
            _slot=slot,
            _head=head,
        )

    def _remove(self, resident: Resident, host: Host) -> None:
        if isinstance(resident._home, Bank):  # noqa: SLF001 - opaque to others
            resident._home.slots.give_back(resident._slot)  # noqa: SLF001
        else:
            host.forget(resident._home)  # noqa: SLF001
        host.heads.give_back(resident._head)  # noqa: SLF001

    def _check_certificate(self, bundle: Bundle, host: Host, resident: Resident) -> None:
        if bundle.certificate is None:
            logger.info("model %s has no certificate; it is not checked", bundle.sha256[:12])
            return
        images = golden_batch(host.backbone)
        outputs = _answer(host, [resident] * len(images), images)
        bundle.certificate.check(np.stack([output.logits for output in outputs]), self._precision)


def _answer(
    host: Host, residents: Sequence[Resident], images: Tensor, cores: int | None = None
) -> list[Output]:
    slots = [resident._slot for resident in residents]  # noqa: SLF001
    with torch.no_grad():
        features = host.run(residents[0]._home, slots, images, cores)  # noqa: SLF001
        logits = host.heads.run([resident._head for resident in residents], features)  # noqa: SLF001
    rows: NDArray[np.float32] = features.cpu().numpy()
    return [Output(*pair) for pair in zip(logits, rows, strict=True)]
