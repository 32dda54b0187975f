"""What is asked of a model, and what it answers, in this API's own words."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

#: Most images of one request, whatever the protocol.
MAX_IMAGES = 64
MAX_TOP_K = 1000

FunctionName = Literal["softmax", "sigmoid", "none"]
EncodingFormat = Literal["float", "base64"]

_TOP_K = "Classes per image."
_FUNCTION = "What turns logits into scores."
_THRESHOLD = (
    "An image whose best score is below it is answered as rejected: one element with an empty "
    "label, that score, and `rejected`."
)
TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K, description=_TOP_K)]
Function = Annotated[FunctionName, Field(description=_FUNCTION)]
Threshold = Annotated[float | None, Field(allow_inf_nan=False, description=_THRESHOLD)]


def _check_images(value: Any) -> Any:  # noqa: ANN401 - whatever JSON has there
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("must be an image in base64, or a list of them")  # noqa: TRY004 - Pydantic's way
    for index, item in enumerate(value):
        if not isinstance(item, str):
            raise ValueError(f"item {index} must be a string: an image in base64")  # noqa: TRY004
    return value


_IMAGE_SCHEMA = {"type": "string", "contentEncoding": "base64"}
#: One image in base64, or a list of them.
Base64Images = Annotated[
    str | list[str],
    PlainValidator(_check_images),
    WithJsonSchema(
        {
            "anyOf": [
                _IMAGE_SCHEMA,
                {"type": "array", "minItems": 1, "maxItems": MAX_IMAGES, "items": _IMAGE_SCHEMA},
            ]
        }
    ),
]


class ClassScore(BaseModel):
    """A class and its score."""

    label: str = Field(description="Name of the class; empty where the image is rejected.")
    score: float = Field(description="After `function_to_apply`.")
    rejected: bool = Field(
        default=False, description="Present and true where the best score is below `threshold`."
    )


class ClassifyParameters(BaseModel):
    """How scores are made and how many are told."""

    model_config = ConfigDict(extra="forbid", strict=True)

    top_k: TopK = 5
    function_to_apply: Function = "softmax"
    threshold: Threshold = None

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:  # noqa: ANN401 - whatever JSON has there
        """Take null for "not given", as clients that fill every field in send it."""
        if isinstance(value, dict):
            return {name: given for name, given in value.items() if given is not None}
        return value


class ClassifyBody(BaseModel):
    """JSON of the Hugging Face task image-classification."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: Base64Images = Field(description="An image in base64, or a list of them.")
    parameters: ClassifyParameters = Field(default_factory=ClassifyParameters)
    options: dict[str, Any] | None = Field(
        None, description="Taken and not used: older Hugging Face clients send it."
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_null(cls, value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, dict) and value.get("parameters", ...) is None:
            return {name: given for name, given in value.items() if name != "parameters"}
        return value


class EmbeddingsBody(BaseModel):
    """JSON of OpenAI's embeddings, with images in base64 for texts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: Base64Images | None = Field(None, description="An image in base64, or a list of them.")
    inputs: Base64Images | None = Field(None, description="The same, as Hugging Face names it.")
    encoding_format: EncodingFormat | None = None
    model: str | None = Field(None, description="Taken and not used: the path names the model.")
    user: str | None = Field(None, description="Taken and not used.")

    @model_validator(mode="after")
    def _check(self) -> "EmbeddingsBody":
        if (self.input is None) == (self.inputs is None):
            raise ValueError("give exactly one of input and inputs")
        return self

    @property
    def images(self) -> str | list[str]:
        """The images, under whichever name they came."""
        given = self.input if self.inputs is None else self.inputs
        assert given is not None, "checked above"
        return given


class Embedding(BaseModel):
    """Features of one image."""

    object: Literal["embedding"] = "embedding"
    index: int = Field(description="Place of the image in the request, from 0.")
    embedding: list[float] | str = Field(
        description="Numbers, or base64 of them as little-endian float32."
    )


class EmbeddingList(BaseModel):
    """Features of every image, in the order of the request."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str = Field(description="Id of the model.")
