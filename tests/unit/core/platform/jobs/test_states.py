"""The table of transitions, and the diagram that people read instead of it."""

import re
from pathlib import Path

from core.platform.jobs.states import HELD, TERMINAL, TRANSITIONS
from core.types import JobState

PAGE = (Path(__file__).parents[5] / "docs" / "state_machine.md").read_text()


def test_every_state_is_listed() -> None:
    assert set(TRANSITIONS) == set(JobState)


def test_the_ends_are_the_three_that_are_documented() -> None:
    assert {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED} == TERMINAL
    assert not TERMINAL & HELD


def test_an_end_can_be_reached_from_everywhere() -> None:
    for state in JobState:
        seen, waiting = set(), {state}
        while waiting:
            here = waiting.pop()
            seen.add(here)
            waiting |= TRANSITIONS[here] - seen
        assert seen & TERMINAL


def test_the_diagram_shows_exactly_the_table() -> None:
    (diagram,) = re.findall(r"```mermaid\n(.*?)```", PAGE, re.DOTALL)
    edges = re.findall(r"^\s*(\S+) --> (\S+?)(?: ?:.*)?$", diagram, re.MULTILINE)
    assert len(edges) == len(set(edges))
    table = {(state.value, target.value) for state in TRANSITIONS for target in TRANSITIONS[state]}
    starts = {("[*]", JobState.VALIDATING_FILES.value), ("[*]", JobState.QUEUED.value)}
    ends = {(state.value, "[*]") for state in TERMINAL}
    assert set(edges) == table | starts | ends


def test_every_state_has_its_sentence() -> None:
    described = re.findall(r"^\| `(\w+)` \| (.+?) \|", PAGE, re.MULTILINE)
    assert [state for state, _ in described] == [state.value for state in JobState]
    assert all(sentence.rstrip().endswith(".") for _, sentence in described)
