"""What the protocol tells of this server and of a model."""

from collections.abc import Sequence

from api.inference import ServedModel
from api.oip.requests import FEATURES, LOGITS, PROBABILITIES
from api.oip.tensors import IMAGE, PIXEL_VALUES
from api.schemas.oip import ModelMetadata, ServerMetadata, TensorMetadata
from core.catalog.backbones import find_backbone

SERVER_NAME = "idat"
PLATFORM = "pytorch_timm"
EXTENSIONS = ("classification", "binary_tensor_data", "model_repository", "parameters")


def describe_server(version: str) -> ServerMetadata:
    """Return who answers and which extensions it knows."""
    return ServerMetadata(name=SERVER_NAME, version=version, extensions=list(EXTENSIONS))


def find_image_px(model: ServedModel) -> int | None:
    """Return the side that a model reads, None for a backbone that the catalog does not know."""
    facts = find_backbone(model.backbone)
    return None if facts is None else facts.image_px


def describe_model(name: str, versions: Sequence[str], model: ServedModel) -> ModelMetadata:
    """Return a model's tensors.

    Args:
        name: as the caller wrote it.
        versions: ids of the models with its name.
        model: the one that answers.
    """
    facts = find_backbone(model.backbone)
    px = -1 if facts is None else facts.image_px
    width = -1 if facts is None else facts.num_features
    classes = len(model.classes)
    return ModelMetadata(
        name=name,
        versions=list(versions),
        platform=PLATFORM,
        inputs=[
            TensorMetadata(name=IMAGE, datatype="BYTES", shape=[-1]),
            TensorMetadata(name=PIXEL_VALUES, datatype="FP32", shape=[-1, 3, px, px]),
        ],
        outputs=[
            TensorMetadata(name=PROBABILITIES, datatype="FP32", shape=[-1, classes]),
            TensorMetadata(name=LOGITS, datatype="FP32", shape=[-1, classes]),
            TensorMetadata(name=FEATURES, datatype="FP32", shape=[-1, width]),
        ],
    )
