"""References asked of the database seldom, once for all who wait, and known when it is away."""

import asyncio
import threading
import time

import pytest
from sqlalchemy.exc import OperationalError

from api import resolution
from api.resolution import FRESH_S, STALE_S, ModelResolver, ServedModel
from core.errors import NotFoundError

PATIENCE_S = 30.0
PROJECT = "default"


def served(model_id="mdl_1"):
    return ServedModel(model_id, "flowers", PROJECT, "a" * 64, "c" * 64, "tiny", ("ant", "bee"))


class Rig:
    """A resolver over a database that is written out, and a clock that stands still."""

    def __init__(self):
        self.now_s = 100.0
        self.reads = []
        self.outcome = served()
        self.may_read = threading.Event()
        self.may_read.set()
        self.resolver = ModelResolver(None, clock=lambda: self.now_s)
        self.resolver._find = self.find
        self.resolver._find_holding = lambda _: set()

    def find(self, project, reference):
        self.reads.append((project, reference))
        outcome = self.outcome
        assert self.may_read.wait(PATIENCE_S)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def ask(self, reference="flowers", times=1):
        """The same question at once from so many requests."""

        async def ask_all():
            questions = (self.resolver.resolve(PROJECT, reference) for _ in range(times))
            return await asyncio.gather(*questions)

        return asyncio.run(ask_all())


def wait_until(condition):
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def away():
    return OperationalError("SELECT 1", {}, Exception("connection refused"))


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    rig.may_read.set()
    rig.resolver.close()


def test_the_database_is_asked_once_for_all_who_wait(rig):
    rig.may_read.clear()
    threading.Timer(0.05, rig.may_read.set).start()
    assert rig.ask(times=50) == [rig.outcome] * 50
    assert len(rig.reads) == 1


def test_an_answer_holds_for_a_second_and_no_longer(rig):
    rig.ask()
    rig.outcome = NotFoundError("deleted")
    rig.now_s += FRESH_S * 0.6
    assert rig.ask()[0].id == "mdl_1"
    rig.now_s += FRESH_S * 0.5
    with pytest.raises(NotFoundError):
        rig.ask()
    assert len(rig.reads) == 2


def test_it_is_asked_for_again_before_it_is_old_and_nobody_waits(rig):
    rig.ask()
    rig.outcome = NotFoundError("deleted")
    rig.now_s += FRESH_S * 0.8
    rig.may_read.clear()
    assert [model.id for model in rig.ask(times=3)] == ["mdl_1"] * 3
    rig.may_read.set()
    wait_until(lambda: rig.resolver._renewal.done() and not rig.resolver._asking)
    assert len(rig.reads) == 2
    with pytest.raises(NotFoundError):
        rig.ask()
    assert len(rig.reads) == 2


def test_what_is_not_there_is_not_asked_for_again_at_once(rig):
    rig.outcome = NotFoundError("no such model")
    for _ in range(5):
        with pytest.raises(NotFoundError):
            rig.ask()
    assert len(rig.reads) == 1
    rig.outcome = served()
    rig.now_s += FRESH_S
    assert rig.ask()[0].id == "mdl_1"


def test_what_is_known_is_served_while_the_database_is_away(rig):
    rig.ask()
    rig.outcome = away()
    rig.now_s += STALE_S / 2
    assert [model.id for model in rig.ask(times=3)] == ["mdl_1"] * 3
    assert len(rig.reads) == 2
    rig.now_s += STALE_S / 2
    with pytest.raises(OperationalError):
        rig.ask()


def test_a_renewal_that_finds_the_database_away_leaves_what_is_known_for_a_second(rig):
    rig.ask()

    def fail(_known):
        raise away()

    rig.resolver._find_holding = fail
    for _ in range(3):
        rig.now_s += FRESH_S * 0.8
        assert rig.ask()[0].id == "mdl_1"
        wait_until(rig.resolver._renewal.done)
    assert len(rig.reads) == 1, "nobody has asked by himself"
    rig.now_s += STALE_S
    with pytest.raises(OperationalError):
        rig.ask()


def test_what_is_not_known_fails_while_the_database_is_away(rig):
    rig.outcome = away()
    with pytest.raises(OperationalError):
        rig.ask()
    rig.outcome = served()
    assert rig.ask()[0].id == "mdl_1", "and is asked for again as soon as somebody asks"


def test_a_database_that_hangs_holds_nobody_up_for_whom_something_is_known(rig, monkeypatch):
    monkeypatch.setattr(resolution, "_PATIENCE_S", 0.01)
    rig.ask()
    rig.now_s += FRESH_S
    rig.may_read.clear()
    assert rig.ask()[0].id == "mdl_1"


def test_projects_do_not_share_what_they_know(rig):
    rig.ask()
    assert rig.resolver.find_known(PROJECT, "flowers") is rig.outcome
    assert rig.resolver.find_known("other", "flowers") is None


def test_references_without_end_take_no_memory_without_end(rig, monkeypatch):
    monkeypatch.setattr(resolution, "_MAX_ENTRIES", 10)
    for number in range(50):
        rig.ask(f"model {number}")
    assert len(rig.resolver._entries) == 10
