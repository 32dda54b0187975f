"""What can be changed of a job that is there."""

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.fields import PriorityNumber


class JobChanges(BaseModel):
    """New values of a job's fields."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"priority": 10}]})

    priority: PriorityNumber = Field(description="Higher starts first, equal ones by age.")
