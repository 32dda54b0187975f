"""What a job would need, on the wire."""

from typing import Literal

from pydantic import BaseModel, Field


class MemoryBasis(BaseModel):
    """What the memory is the sum of."""

    weights_bytes: int = Field(description="Of the backbones.")
    activations_bytes: int = Field(description="Of one batch.")
    trainable_bytes: int = Field(description="Values, gradients and moments: 16 bytes a number.")
    images_bytes: int = Field(description="The dataset, decoded; 0 until it is ready.")
    process_bytes: int = Field(description="Libraries, and on a GPU the context.")
    precision: Literal["fp32", "bf16"] = Field(description="Counted with; `auto` as fp32.")


class EstimateBasis(BaseModel):
    """What an estimate rests on."""

    memory: MemoryBasis
    jobs: int = Field(description="Finished jobs like this one that the time was taken from.")


class Estimate(BaseModel):
    """What a job would need."""

    memory_bytes: int = Field(description="Of the device that trains it; by a formula.")
    seconds: float | None = Field(
        description="Null until a job of the project with the same networks, adapter and batch has "
        "succeeded, and the dataset is ready."
    )
    basis: EstimateBasis
