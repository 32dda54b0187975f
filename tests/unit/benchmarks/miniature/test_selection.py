"""One rate for each placement, by validation over all tasks."""

import pytest

from benchmarks.miniature.methods import PLACEMENTS
from benchmarks.miniature.selection import (
    RATES,
    SELECTION_SEED,
    choose_rates,
    list_selected_tasks,
    list_selection_jobs,
)
from benchmarks.miniature.suite import TASKS, Size
from core.errors import InvalidError

SIZE = Size(train=8, val=8, test=8, epochs=1, batch_size=8)


def grid(tasks, figures):
    """Return rows with (val, val_loss) by task, placement and index of the rate."""
    rows = {}
    for job in list_selection_jobs(tasks, SIZE):
        placement = job.method.removeprefix("plain-")
        index = RATES[placement].index(job.settings.learning_rate)
        val, loss = figures(job.task, placement, index)
        rows[job.key] = {**job.to_json(), "val": val, "val_loss": loss}
    return rows


class TestJobs:
    def test_never_have_a_test_split_nor_a_teacher(self):
        jobs = list(list_selection_jobs(TASKS, SIZE))

        assert len(jobs) == len({job.key for job in jobs}) == 6 * 3 * 3
        assert {(job.settings.test, job.settings.teacher, job.seed) for job in jobs} == {
            (0, None, SELECTION_SEED)
        }


class TestChooseRates:
    def test_the_mean_over_tasks_decides(self):
        # The middle rate is nowhere the best, but on the mean.
        vals = {"digits": (0.9, 0.8, 0.1), "count": (0.1, 0.4, 0.5)}
        rows = grid(["digits", "count"], lambda task, placement, index: (vals[task][index], 1.0))

        assert choose_rates(rows, SIZE) == {p: RATES[p][1] for p in PLACEMENTS}

    def test_placements_are_chosen_each_by_itself(self):
        best = {"S": 0, "P": 1, "PS": 2}
        rows = grid(["digits"], lambda task, placement, index: (float(index == best[placement]), 1))

        assert choose_rates(rows, SIZE) == {p: RATES[p][best[p]] for p in PLACEMENTS}

    def test_the_lower_loss_decides_among_equals(self):
        rows = grid(["digits"], lambda task, placement, index: (0.5, 3.0 - index))

        assert choose_rates(rows, SIZE) == {p: RATES[p][2] for p in PLACEMENTS}

    def test_a_diverged_run_counts_as_nothing_learnt(self):
        rows = grid(["digits"], lambda task, placement, index: (0.2 + index / 10, 1.0))
        for job in list_selection_jobs(["digits"], SIZE):
            if job.settings.learning_rate == RATES["S"][2]:
                rows[job.key] = {**job.to_json(), "error": "diverged"}

        assert choose_rates(rows, SIZE)["S"] == RATES["S"][1]

    def test_all_that_were_tried_decide_whichever_is_measured(self):
        vals = {"digits": (0.9, 0.8, 0.1), "count": (0.1, 0.4, 0.5)}
        rows = grid(["digits", "count"], lambda task, placement, index: (vals[task][index], 1.0))

        assert list_selected_tasks(rows, SIZE) == ["digits", "count"]
        assert choose_rates(rows, SIZE, needed=["digits"]) == choose_rates(rows, SIZE)

    @pytest.mark.parametrize("needed", [["textures"], ["digits", "textures"]])
    def test_a_task_that_was_not_tried_is_named(self, needed):
        rows = grid(["digits"], lambda task, placement, index: (0.5, 1.0))

        with pytest.raises(InvalidError, match=r"9 runs .*\(textures\).* select"):
            choose_rates(rows, SIZE, needed=needed)

    def test_a_grid_with_holes_is_refused(self):
        rows = grid(["digits"], lambda task, placement, index: (0.5, 1.0))
        rows.popitem()

        with pytest.raises(InvalidError, match="1 runs"):
            choose_rates(rows, SIZE)

    def test_nothing_is_chosen_from_nothing(self):
        with pytest.raises(InvalidError, match="54 runs"):
            choose_rates({}, SIZE)
