"""Open Inference Protocol v2: requests and answers, with the parameters that have a meaning here.

Further members and parameters are passed over, as the protocol lets clients send their own.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Dimension = Annotated[int, Field(ge=0, le=2**63 - 1)]


class _Sent(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class InputParameters(_Sent):
    """Of an input."""

    binary_data_size: int | None = Field(
        None, ge=0, description="The data follow the JSON, in so many bytes."
    )
    shared_memory_region: str | None = Field(None, description="Refused: there is none here.")


class InferInput(_Sent):
    """An input tensor."""

    name: str = Field(description="`image` or `pixel_values`.")
    shape: list[Dimension] = Field(max_length=8)
    datatype: str = Field(description="BYTES for `image`; FP32, FP16 or BF16 for `pixel_values`.")
    parameters: InputParameters = Field(default_factory=InputParameters)
    data: list[Any] | None = Field(None, description="Flat or nested; images in base64.")


class OutputParameters(_Sent):
    """Of an output."""

    binary_data: bool | None = Field(None, description="Answer it behind the JSON.")
    classification: int | None = Field(
        None, ge=0, description='Answer the best so many classes, as "value:index:label".'
    )
    shared_memory_region: str | None = Field(None, description="Refused: there is none here.")


class InferRequestedOutput(_Sent):
    """An output that is asked for."""

    name: str
    parameters: OutputParameters = Field(default_factory=OutputParameters)


class RequestParameters(_Sent):
    """Of the request."""

    binary_data_output: bool = Field(
        default=False, description="Answer every output behind the JSON that says nothing else."
    )
    timeout: int | None = Field(
        None, ge=0, description="Microseconds after which the answer is of no use; 0 means none."
    )


class InferBody(_Sent):
    """A request for inference."""

    id: str | None = Field(None, max_length=1000, description="Comes back in the answer.")
    parameters: RequestParameters = Field(default_factory=RequestParameters)
    inputs: list[InferInput] = Field(min_length=1, max_length=16)
    outputs: list[InferRequestedOutput] | None = Field(
        None, max_length=16, description="Left out or empty: all."
    )


class TensorMetadata(BaseModel):
    """A tensor that a model takes or gives."""

    name: str
    datatype: str
    shape: list[int] = Field(description="-1 where the size is the request's.")


class ModelMetadata(BaseModel):
    """What a model takes and gives."""

    name: str
    versions: list[str] = Field(description="Ids of the models with this name, oldest first.")
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """Who answers."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    """The process runs."""

    live: bool = True


class ServerReady(BaseModel):
    """Requests can be answered."""

    ready: bool = True


class ModelReady(BaseModel):
    """A model can answer."""

    name: str
    ready: bool = True


class InferOutput(BaseModel):
    """An output tensor; without `data` where they follow the JSON."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class InferAnswer(BaseModel):
    """What inference gave."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferOutput]


class IndexBody(_Sent):
    """Which models to list."""

    ready: bool = Field(default=False, description="Only those that are loaded.")


class IndexEntry(BaseModel):
    """A model of the repository."""

    name: str
    version: str = Field(description="Id of the model.")
    state: str = Field(description="READY where it is loaded here, else UNAVAILABLE.")
    reason: str


class RepositoryBody(_Sent):
    """Of a request to load or to unload; parameters that change a model are refused."""

    parameters: dict[str, Any] = Field(default_factory=dict)


class OipError(BaseModel):
    """Any failure."""

    error: str


_MEANINGS = {
    400: "The request cannot be read, or is wrong.",
    401: "No API key, or an unknown one.",
    403: "Without API keys: the request came from another site's page.",
    404: "No such model or version.",
    409: "The model cannot run on the backbone that is here.",
    413: "Over a size limit.",
    415: "The body is compressed.",
    429: "This caller has too much under way; try again after `Retry-After` seconds.",
    503: "Not now; try again after `Retry-After` seconds.",
    504: "Not in time.",
}


def oip_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what a route's `responses` say about these failures and those that any route has."""
    return {
        status: {"description": _MEANINGS[status], "model": OipError}
        for status in sorted({400, 401, 403, 503, *statuses})
    }
