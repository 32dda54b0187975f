"""Stored bundles: read from the blob store, made resident, or merged into their network.

One of the modules of the API that load torch.
"""

from pathlib import Path

from api.resolution import ServedModel
from core.errors import ConflictError, InvalidError
from core.ml.backbones.load import WeightsMismatchError, load_backbone
from core.ml.export.bundle import Bundle, parse_bundle
from core.ml.export.certificate import CertificateError
from core.ml.export.merged import check_mergeable, encode_merged, merge_bundle
from core.ml.inference.engine import Engine, Resident
from core.platform.storage.base import BlobStore


def read_bundle(store: BlobStore, model: ServedModel) -> Bundle:
    """Return a model's bundle from the store.

    Raises:
        BlobMissingError: its files are gone; so is the model, or soon.
        StoreUnavailableError: try again later.
        RuntimeError: the files are not a bundle.
    """
    with store.open(model.adapter_sha256) as file:
        adapter = file.read()
    with store.open(model.config_sha256) as file:
        config = file.read()
    try:
        return parse_bundle(adapter, config)
    except InvalidError as error:
        # This service wrote it: the caller's request is not to blame.
        raise RuntimeError(f"the stored bundle of {model.id} is broken") from error


def make_resident(engine: Engine, store: BlobStore, model: ServedModel) -> Resident:
    """Read a model and admit it to the engine; a bare backbone is there with its network.

    Raises:
        ConflictError: it does not fit the backbone that is here, or does not answer as it should.
        WeightsUnavailableError: the backbone is not here.
    """
    if model.is_bare:
        return engine.base(model.backbone)
    bundle = read_bundle(store, model)
    try:
        return engine.admit(bundle)
    except InvalidError as error:
        # Not the request's fault, which the error's own family would say.
        raise ConflictError(error.message, code=error.code) from error


def check_bundle(engine: Engine, bundle: Bundle) -> None:
    """Let a bundle answer for its certificate if its backbone is in memory here.

    Otherwise that is done when the model is loaded first.

    Raises:
        ConflictError: the backbone here is another one, or it does not answer as it should.
        InvalidError: its tensors do not fit the network.
    """
    if bundle.backbone.name not in engine.list_backbones():
        return
    try:
        engine.evict(engine.admit(bundle))
    except (WeightsMismatchError, CertificateError) as error:
        raise ConflictError(error.message, code=error.code) from error


def merge_model(store: BlobStore, model: ServedModel, weights_dir: Path | None) -> bytes:
    """Return a model written into its network, as a plain timm checkpoint.

    Raises:
        UnsupportedAdapterError: its kind of adapter is no linear change of the weights.
        ConflictError: the backbone here is not the one that the model was trained on.
        WeightsUnavailableError: the backbone is not here.
    """
    bundle = read_bundle(store, model)
    check_mergeable(bundle)
    # Not the resident one, which may be cast, on a GPU, and in use.
    backbone = load_backbone(bundle.backbone.name, weights_dir=weights_dir)
    try:
        state = merge_bundle(bundle, backbone)
    except WeightsMismatchError as error:
        raise ConflictError(error.message, code=error.code) from error
    return encode_merged(state, bundle, bundle.classes)
