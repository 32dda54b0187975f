"""What references mean, asked of the database once in 0.7 s at most, all that are in use at once.

A model that is deleted, or an alias that moves, is noticed within `FRESH_S`. While the database
cannot be reached, what is known goes on being served for `STALE_S`.
"""

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from core.clock import monotonic_s
from core.errors import NotFoundError
from core.platform.db.engine import Database
from core.platform.db.model_tables import ModelAliasRow
from core.platform.db.tables import ModelRow, ProjectRow
from core.platform.models.meaning import Known, find_holding
from core.platform.models.repository import find_alias, find_by_id, get_model

logger = logging.getLogger(__name__)

#: How long what the database said is taken for granted.
FRESH_S = 1.0
#: From this age on it is asked for again while it is still good: under steady traffic nobody waits.
_AHEAD_S = 0.7
#: What was not used for so long is not asked for again with the others. One more among them takes
#: 10 us, one by itself 0.4 ms and a request's time.
_IN_USE_S = 60.0
#: What was asked for by itself a moment ago is not asked for with the others.
_JUST_S = 0.1
#: How long it goes on being served while the database cannot be reached.
STALE_S = 600.0
#: How long a request waits for a database that does not answer, if something is known.
_PATIENCE_S = 0.5
_THREADS = 4
_MAX_ENTRIES = 8192


@dataclass(frozen=True, eq=False)
class ServedModel:
    """What serving needs to know of a published model, free of the database.

    Attributes:
        id: the model's.
        name: likewise.
        project_id: whose it is.
        adapter_sha256: blob of the adapters and the head.
        config_sha256: blob of the description.
        backbone: timm name.
        classes: names, in the order of the logits.
        shadow: what its answers are compared with, if it was named by an alias that has a shadow.
        change_id: the change of the alias that it was named by; None if it was not.
    """

    id: str
    name: str
    project_id: str
    adapter_sha256: str
    config_sha256: str
    backbone: str
    classes: tuple[str, ...]
    shadow: "Shadow | None" = None
    change_id: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What it is in memory: models of the same bytes are the same there."""
        return (self.adapter_sha256, self.config_sha256)

    @property
    def is_bare(self) -> bool:
        """Whether it is a backbone without adapters and head, which has features only."""
        return not self.adapter_sha256


def build_bare(backbone: str, project: str) -> ServedModel:
    """Return a backbone without adapters and head as something to serve; its id is its name."""
    return ServedModel(
        id=backbone,
        name=backbone,
        project_id=project,
        adapter_sha256="",
        config_sha256=backbone,
        backbone=backbone,
        classes=(),
    )


@dataclass(frozen=True, eq=False)
class Shadow:
    """A second model that an alias names.

    Attributes:
        change_id: the alias's change that set the two side by side.
        model: the second one.
        fraction: share of the requests that it is given, above 0, to 1.
    """

    change_id: int
    model: ServedModel
    fraction: float


#: A project and what it calls a model.
_Key = tuple[str, str]


@dataclass(eq=False, slots=True)
class _Entry:
    outcome: ServedModel | Exception
    answered_s: float  #: when the database said so
    tried_s: float  #: when it was asked last
    used_s: float  #: when somebody wanted it last


class ModelResolver:
    """References of projects to models; `resolve` from any event loop.

    Args:
        database: asked in a few threads of its own.
        clock: seconds that never jump; for tests.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = monotonic_s) -> None:
        self._database = database
        self._clock = clock
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._lock_of_entries = threading.Lock()  # for what changes them
        self._asking: dict[_Key, Future[_Entry]] = {}
        self._renewal: Future[None] | None = None
        self._renewed_s = -FRESH_S
        self._weights: dict[str, float] = {}
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="resolve")

    def weight_of(self, project: str) -> float:
        """Return a project's share relative to others', as the database had it last."""
        return self._weights.get(project, 1.0)

    def find_known(self, project: str, reference: str) -> ServedModel | None:
        """Return what a reference meant when it was asked last, without asking."""
        entry = self._entries.get((project, reference))
        return entry.outcome if entry and isinstance(entry.outcome, ServedModel) else None

    async def resolve(self, project: str, reference: str) -> ServedModel:
        """Return the model that a reference means to a project.

        Raises:
            NotFoundError: it means none.
            OperationalError: the database cannot be reached, and the reference is not known.
        """
        key = (project, reference)
        now_s = self._clock()
        entry = self._entries.get(key)
        asking = None
        if entry is None or now_s - entry.tried_s >= FRESH_S:
            asking = self._begin_to_ask(key)
        if entry is not None:
            entry.used_s = now_s
            if now_s - entry.tried_s >= _AHEAD_S:
                self._begin_to_renew(now_s)
        if asking is not None:
            entry = await self._wait_for(asking, entry)
        assert entry is not None
        if isinstance(entry.outcome, ServedModel):
            return entry.outcome
        raise entry.outcome.with_traceback(None)  # it would grow by every request that it ends

    def close(self) -> None:
        """Ask no more."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin_to_renew(self, now_s: float) -> None:
        if self._renewal is not None and not self._renewal.done():
            return
        if now_s - self._renewed_s >= _AHEAD_S:
            self._renewed_s = now_s
            self._renewal = self._pool.submit(self._renew)
            self._renewal.add_done_callback(_report)

    def _begin_to_ask(self, key: _Key) -> "Future[_Entry]":
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = self._pool.submit(self._read, key)
            asking.add_done_callback(lambda _: self._asking.pop(key, None))
        return asking

    async def _wait_for(self, asking: "Future[_Entry]", known: _Entry | None) -> _Entry:
        # Shielded: others may wait for the same answer when this request is cancelled.
        answer = asyncio.shield(asyncio.wrap_future(asking))
        if known is None or not isinstance(known.outcome, ServedModel):
            return await answer
        done, _ = await asyncio.wait([answer], timeout=_PATIENCE_S)
        if done:
            return answer.result()
        answer.add_done_callback(_look_at)
        return known if self._clock() - known.answered_s < STALE_S else await answer

    def _renew(self) -> None:
        """Ask for all that is in use at once, and for what does not hold any more by itself."""
        now_s = self._clock()
        with self._lock_of_entries:
            in_use = {
                key: (entry, entry.outcome)
                for key, entry in self._entries.items()
                if now_s - entry.used_s < _IN_USE_S
                and now_s - entry.tried_s > _JUST_S
                and key not in self._asking
                and isinstance(entry.outcome, ServedModel)
            }
        try:
            holding = self._find_holding([(key, model) for key, (_, model) in in_use.items()])
        except SQLAlchemyError:
            logger.warning("the database cannot be reached; models are served as known")
            for entry, _ in in_use.values():
                if now_s - entry.answered_s < STALE_S:
                    entry.tried_s = self._clock()
            return
        for key, (entry, _) in in_use.items():
            if key in holding:
                entry.answered_s = entry.tried_s = now_s
            else:
                self._read(key)

    def _read(self, key: _Key) -> _Entry:
        project, reference = key
        known = self._entries.get(key)
        now_s = self._clock()
        try:
            entry = _Entry(self._find_again(project, reference, known), now_s, now_s, now_s)
        except NotFoundError as error:
            entry = _Entry(error, now_s, now_s, now_s)
        except SQLAlchemyError as error:
            is_servable = known is not None and isinstance(known.outcome, ServedModel)
            if known is None or not is_servable or now_s - known.answered_s >= STALE_S:
                return _Entry(error, now_s, now_s, now_s)
            logger.warning("the database cannot be reached; %s is served as known", reference)
            entry = _Entry(known.outcome, known.answered_s, self._clock(), now_s)
        with self._lock_of_entries:
            self._entries[key] = entry
            self._entries.move_to_end(key)
            while len(self._entries) > _MAX_ENTRIES:
                self._entries.popitem(last=False)
        return entry

    def _find_again(self, project: str, reference: str, known: _Entry | None) -> ServedModel:
        """Return what is known if it still holds, which costs less than reading it anew."""
        model = known.outcome if known is not None else None
        key = (project, reference)
        if isinstance(model, ServedModel) and self._find_holding([(key, model)]):
            return model
        return self._find(project, reference)

    def _find_holding(self, models: Sequence[tuple[_Key, ServedModel]]) -> set[_Key]:
        """Return the references that still mean the models that they meant."""
        known = [
            Known(
                *key,
                model_id=model.id,
                change_id=model.change_id,
                shadow_id=model.shadow.model.id if model.shadow else None,
            )
            for key, model in models
        ]
        with self._database.read_columns() as connection:
            holding, weights = find_holding(connection, known)
        self._weights.update(weights)
        return {(one.project, one.reference) for one in holding}

    def _find(self, project: str, reference: str) -> ServedModel:
        with self._database.read() as session:
            row = get_model(session, reference, project=project)
            tenant = session.get(ProjectRow, project)
            self._weights[project] = tenant.weight if tenant is not None else 1.0
            alias = find_alias(session, reference, project=project)
            if alias is None or alias.model_id != row.id:  # switched since the model was read
                return _build_served(row)
            return _build_served(row, _find_shadow(session, project, alias), alias.change_id)


def _find_shadow(session: Session, project: str, alias: ModelAliasRow) -> Shadow | None:
    if not alias.shadow_fraction or alias.shadow_model_id is None:
        return None
    other = find_by_id(session, alias.shadow_model_id, project=project)
    if other is None:
        return None
    return Shadow(alias.change_id, _build_served(other), alias.shadow_fraction)


def _build_served(
    row: ModelRow, shadow: Shadow | None = None, change_id: int | None = None
) -> ServedModel:
    return ServedModel(
        id=row.id,
        name=row.name,
        project_id=row.project_id,
        adapter_sha256=row.adapter_sha256,
        config_sha256=row.config_sha256,
        backbone=row.backbone,
        classes=tuple(row.classes),
        shadow=shadow,
        change_id=change_id,
    )


def _look_at(answer: "asyncio.Future[_Entry]") -> None:
    """Fetch the exception of an answer that came too late, so that asyncio does not report it."""
    if not answer.cancelled():
        answer.exception()


def _report(renewal: "Future[None]") -> None:
    """Log what nobody waits for: without a renewal every request asks for itself."""
    if not renewal.cancelled() and (error := renewal.exception()) is not None:
        logger.error("references could not be renewed", exc_info=error)
