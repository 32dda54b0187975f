"""MLflow's scoring protocol: a request holds its images in exactly one of four members."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.inference import ClassifyParameters, ClassScore


class SplitFrame(BaseModel):
    """A table as pandas writes it with orient=split."""

    model_config = ConfigDict(strict=True, extra="forbid")

    columns: list[str]
    data: list[list[Any]]
    index: list[Any] | None = Field(None, description="Taken and not used.")


class InvocationsBody(BaseModel):
    """Images in base64; in a table they are in the column `image`, or in the only one."""

    model_config = ConfigDict(strict=True, extra="forbid")

    dataframe_split: SplitFrame | None = None
    dataframe_records: list[dict[str, Any]] | None = None
    instances: list[Any] | None = Field(None, description='Strings, or {"image": string} each.')
    inputs: Any = Field(None, description='A string, a list of them, or {"image": list}.')
    params: ClassifyParameters = Field(default_factory=ClassifyParameters)


class InvocationsAnswer(BaseModel):
    """What the model says of each image."""

    predictions: list[list[ClassScore]] = Field(description="For each image its best classes.")
