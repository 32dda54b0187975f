"""Lists in pages, places in the queue, events and epochs."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from core.errors import NotFoundError
from core.platform.datasets.repository import list_datasets
from core.platform.db.engine import Database
from core.platform.db.tables import DatasetRow, JobRow, ModelRow
from core.platform.jobs import control, events, repository
from core.platform.jobs.queue import find_places
from core.platform.models.repository import get_model, list_models
from tests.integration.platform.rows import (
    add_dataset,
    add_job,
    claim,
    job_of,
    publish,
)

List = Callable[..., list[Any]]


def add_with_times(database: Database, table: type[Any], times_s: list[float]) -> list[str]:
    """Rows created at these times; their ids, oldest first, equal times by id."""
    ids = []
    for time_s in times_s:
        if table is DatasetRow:
            row_id: str = add_dataset(database)
        else:
            row_id = add_job(database)
            if table is ModelRow:
                claimed = claim(database)
                publish(database, claimed)
                row_id = str(job_of(database, claimed.row_id).model_id)
        with database.write() as session:
            session.execute(update(table).where(table.id == row_id).values(created_at=time_s))
        ids.append(row_id)
    order = sorted(zip(times_s, ids, strict=True))
    return [row_id for _, row_id in order]


def walk(
    session: Session, list_rows: List, *, limit: int, descending: bool, **options: Any
) -> list[str]:
    """The ids of all pages, one after the other."""
    seen: list[str] = []
    while True:
        after = seen[-1] if seen else None
        page = list_rows(session, after=after, limit=limit, descending=descending, **options)
        assert len(page) <= limit
        if not page:
            return seen
        seen += [row.id for row in page]
        assert len(seen) < 100


@pytest.mark.parametrize(
    ("table", "list_rows"),
    [
        (JobRow, repository.list_jobs),
        (DatasetRow, list_datasets),
        (ModelRow, list_models),
    ],
    ids=["jobs", "datasets", "models"],
)
def test_pages_show_every_row_once(database: Database, table: type[Any], list_rows: List) -> None:
    expected = add_with_times(database, table, [5.5, 1.0, 5.5, 5.5, 9.25, 5.5])
    with database.read() as session:
        for limit in (1, 2, 4, 10):
            assert walk(session, list_rows, limit=limit, descending=False) == expected
            assert walk(session, list_rows, limit=limit, descending=True) == expected[::-1]


def test_new_rows_do_not_shift_the_pages(database: Database) -> None:
    ids = add_with_times(database, JobRow, [1.0, 2.0, 3.0, 4.0])
    with database.read() as session:
        first = repository.list_jobs(session, after=None, limit=2)
    add_with_times(database, JobRow, [5.0, 6.0])
    with database.read() as session:
        second = repository.list_jobs(session, after=first[-1].id, limit=2)
    assert [job.id for job in [*first, *second]] == ids[::-1]


def test_a_page_beyond_an_unknown_row_is_not_found(database: Database) -> None:
    with database.read() as session, pytest.raises(NotFoundError):
        repository.list_jobs(session, after="ftjob_none", limit=2)


def test_a_list_of_one_state_pages_too(database: Database) -> None:
    ids = add_with_times(database, JobRow, [1.0, 1.0, 1.0, 1.0])
    gone = claim(database).row_id
    with database.read() as session:
        found = walk(session, repository.list_jobs, limit=1, descending=False, state="queued")
    assert found == [job_id for job_id in ids if job_id != gone]


def test_the_place_in_the_queue_is_the_order_of_claims(database: Database) -> None:
    ids = add_with_times(database, JobRow, [2.0, 1.0, 2.0, 2.0])

    def positions() -> list[int | None]:
        with database.read() as session:
            places = find_places(session, [repository.get_job(session, job_id) for job_id in ids])
        return [places[job_id].position if job_id in places else None for job_id in ids]

    assert positions() == [0, 1, 2, 3]
    assert claim(database).row_id == ids[0]
    assert positions() == [None, 0, 1, 2]
    with database.write() as session:
        control.request_cancel(session, ids[2])
    assert positions() == [None, 0, None, 1]
    with database.read() as session:
        assert len(repository.list_jobs(session, after=None, limit=1000, state="queued")) == 2
    assert [claim(database).row_id for _ in range(2)] == [ids[1], ids[3]]


def test_events_are_paged_in_order(database: Database) -> None:
    job_id, other = add_job(database), add_job(database)
    with database.write() as session:
        for number in range(5):
            events.add_event(session, job_id, str(number))
            events.add_event(session, other, "not mine")
    with database.read() as session:
        listed = events.list_events(session, job_id, after=0, limit=100)
        assert [event.message for event in listed] == ["job accepted", *"01234"]
        pages = []
        after = 0
        while page := events.list_events(session, job_id, after=after, limit=2):
            pages += [event.id for event in page]
            after = page[-1].id
        backwards = events.list_events(session, job_id, after=after, limit=100, descending=True)
    assert pages == [event.id for event in listed]
    assert [event.id for event in backwards] == pages[-2::-1]


def test_an_epoch_that_is_reported_again_replaces_itself(database: Database) -> None:
    job_id = add_job(database)
    with database.write() as session:
        for epoch in (1, 0, 1):
            events.record_epoch(session, job_id, epoch, {"epoch": epoch})
    with database.read() as session:
        assert [row.epoch for row in events.list_epochs(session, job_id)] == [0, 1]


def test_a_name_means_the_newest_model(database: Database) -> None:
    ids = add_with_times(database, ModelRow, [1.0, 3.0, 3.0, 2.0])
    with database.read() as session:
        assert get_model(session, "f").id == ids[-1]
        assert get_model(session, ids[0]).id == ids[0]
        with pytest.raises(NotFoundError):
            get_model(session, "g")


@pytest.mark.parametrize("text", ["a\0b", "a\udc80b"], ids=["nul", "lone surrogate"])
def test_an_event_takes_any_text(database: Database, text: str) -> None:
    """A message that cannot be written would fail every renewal of the lease with it."""
    job_id = add_job(database)
    with database.write() as session:
        events.add_event(session, job_id, text, data={"text": text})
    with database.read() as session:
        (event,) = events.list_events(session, job_id, after=0, limit=1, descending=True)
    assert event.message in ("a\ufffdb", "a?b")
    assert event.data == {"text": text}
