"""Load backbones before anybody wants them; until then the process is alive, but not ready."""

import logging
import threading
from collections.abc import Callable, Sequence

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from core.errors import AppError
from core.platform.db.engine import Database
from core.platform.db.tables import ModelRow
from core.platform.models.liveness import is_alive

logger = logging.getLogger(__name__)

#: Of the backbones that models in the database use, so many are loaded unasked: the newest.
_MAX_UNASKED = 2
_RETRY_S = 10.0


class WarmUp:
    """Prepares backbones in a thread of its own, one after the other.

    Those that an operator has named are tried until they are there, and the process is not ready
    before. Without names, those of the newest models are tried once: a backbone whose weights are
    gone must not keep the others from being served.

    Args:
        prepare: loads, warms up and checks a backbone; blocking.
        database: tells which backbones models use.
        names: those wanted; empty for those of the newest models.
    """

    def __init__(
        self, prepare: Callable[[str], None], database: Database, names: Sequence[str]
    ) -> None:
        self._prepare = prepare
        self._database = database
        self._names = tuple(names)
        self._fault: str | None = "its backbones are being loaded"
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="warm up", daemon=True)
        self._thread.start()

    def find_fault(self) -> str | None:
        """Return what is still being waited for, or None."""
        return self._fault

    def close(self) -> None:
        """Load no further backbone; wait for the one that is being loaded."""
        self._is_closing.set()
        self._thread.join()

    def _run(self) -> None:
        for name in self._names or self._list_unasked():
            self._fault = f"the backbone {name} is being loaded"
            while not self._try(name) and self._names and not self._is_closing.wait(_RETRY_S):
                pass
            if self._is_closing.is_set():
                return
        self._fault = None

    def _try(self, name: str) -> bool:
        try:
            self._prepare(name)
        except AppError as error:
            self._fault = f"the backbone {name} cannot be loaded: {error.message}"
            logger.warning("%s", self._fault)
        except Exception:
            self._fault = f"the backbone {name} cannot be loaded; the log has why"
            logger.exception("%s", self._fault)
        else:
            return True
        return False

    def _list_unasked(self) -> list[str]:
        newest = func.max(ModelRow.created_at)
        statement = select(ModelRow.backbone).where(is_alive())
        statement = statement.group_by(ModelRow.backbone).order_by(newest.desc())
        try:
            with self._database.read() as session:
                return list(session.scalars(statement.limit(_MAX_UNASKED)))
        except SQLAlchemyError as error:  # no schema yet, or no database: readiness tells of both
            logger.warning("the models' backbones are not known yet: %s", type(error).__name__)
            return []
