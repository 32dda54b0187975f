"""Lists in pages, as OpenAI's API has them: `?after=<id>&limit=&order=`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel

from api.schemas.fields import SLUG_PATTERN

Row = TypeVar("Row")
Item = TypeVar("Item", bound=BaseModel)
PageItem = TypeVar("PageItem", bound=BaseModel)

MAX_LIMIT = 100
DEFAULT_LIMIT = 20


class Page(BaseModel, Generic[PageItem]):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[PageItem]
    has_more: bool


@dataclass(frozen=True)
class PageParams:
    """The page that a caller wants."""

    after: str | None
    limit: int
    descending: bool

    def build_page(self, rows: Sequence[Row], to_item: Callable[[Row], Item]) -> Page[Item]:
        """Cut the row off that was asked for beyond the limit, to know whether there are more."""
        items = [to_item(row) for row in rows[: self.limit]]
        return Page[Item](data=items, has_more=len(rows) > self.limit)


_AFTER_HELP = "Id of the last item of the page before."


async def _newest_first(
    after: Annotated[str | None, Query(pattern=SLUG_PATTERN, description=_AFTER_HELP)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
    order: Annotated[Literal["asc", "desc"], Query()] = "desc",
) -> PageParams:
    return PageParams(after, limit, order == "desc")


async def _oldest_first(
    after: Annotated[str | None, Query(pattern=SLUG_PATTERN, description=_AFTER_HELP)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
    order: Annotated[Literal["asc", "desc"], Query()] = "asc",
) -> PageParams:
    return PageParams(after, limit, order == "desc")


PageDep = Annotated[PageParams, Depends(_newest_first)]
LogPageDep = Annotated[PageParams, Depends(_oldest_first)]
