"""A project on the wire."""

from typing import Literal, Self

from pydantic import BaseModel, Field

from core.platform.projects.repository import ProjectLoad
from core.settings import Settings


class Project(BaseModel):
    """The project of the caller's key: its limits, its share, and what it has under way."""

    object: Literal["project"] = "project"
    name: str
    weight: float = Field(description="Share of the workers, relative to other projects'.")
    max_running_jobs: int | None = Field(description="Jobs at once; null for any number.")
    max_queued_jobs: int | None = Field(description="Jobs that may wait; null for any number.")
    running: int = Field(description="Jobs that a worker has, those that are being stopped too.")
    queued: int = Field(description="Jobs that wait for a worker.")
    waiting_for_dataset: int = Field(description="Jobs whose dataset is being validated.")

    @classmethod
    def from_load(cls, load: ProjectLoad, settings: Settings) -> Self:
        """Show a project; what it has no number of its own for is the setting's."""
        own_limit = load.max_running_jobs
        limit = settings.max_running_jobs if own_limit is None else own_limit
        return cls(
            name=load.name,
            weight=load.weight,
            max_running_jobs=limit or None,
            max_queued_jobs=settings.max_queued_jobs or None,
            running=load.running,
            queued=load.queued,
            waiting_for_dataset=load.waiting_for_dataset,
        )
