"""The caller's own project. Operators change projects with `python -m api.projects`."""

from fastapi import APIRouter

from api.deps import DatabaseDep, ProjectDep, SettingsDep
from api.schemas.problems import problems
from api.schemas.projects import Project
from core.platform.projects.repository import get_load

router = APIRouter(prefix="/v1/projects", tags=["projects"])


@router.get("/current", responses=problems())
def get_current_project(
    database: DatabaseDep, settings: SettingsDep, project: ProjectDep
) -> Project:
    """Show the project of the key that is used: its limits, and what it has under way."""
    with database.read() as session:
        return Project.from_load(get_load(session, project), settings)
