import io

from rich.console import Console

from demo.progress import TrainingProgress


def epoch(number, *, accuracy=0.5, teacher=0.25):
    figures = {
        "epoch": number,
        "train_loss": 1.5,
        "val_accuracy": accuracy,
        "teacher_val_accuracy": teacher,
    }
    return {"epoch": number, "metrics": figures}


RUNNING = {"status": "running", "progress": {"percent": None}}


class Screen:
    def __init__(self, *, epochs, terminal=False):
        self.file = io.StringIO()
        self.now_s = 0.0
        console = Console(file=self.file, force_terminal=terminal, width=100)
        self.progress = TrainingProgress(console, epochs=epochs, clock=lambda: self.now_s)

    def lines(self):
        return self.file.getvalue().splitlines()


class TestTrainingProgress:
    def test_prints_each_epoch_once(self):
        screen = Screen(epochs=3)
        with screen.progress as progress:
            progress.update(RUNNING, [])
            progress.update(RUNNING, [epoch(1)])
            progress.update(RUNNING, [epoch(1)])
            progress.update(RUNNING, [epoch(1), epoch(2), epoch(3)])

        assert [line.split()[0] for line in screen.lines()] == ["epoch", "1/3", "2/3", "3/3"]

    def test_shows_accuracy_of_student_and_teacher_in_percent(self):
        screen = Screen(epochs=2)
        with screen.progress as progress:
            progress.update(RUNNING, [epoch(1, accuracy=0.9725, teacher=None)])

        assert screen.lines()[-1].split()[1:4] == ["1.5000", "97.2%", "-"]

    def test_time_left_follows_from_the_epochs_seen(self):
        screen = Screen(epochs=5)
        with screen.progress as progress:
            progress.update(RUNNING, [epoch(1)])
            screen.now_s = 4.0
            progress.update(RUNNING, [epoch(1), epoch(2), epoch(3)])

        # Two epochs took four seconds when the third was seen, and two are left.
        assert screen.lines()[-1].split()[-2:] == ["4", "s"]

    def test_without_a_terminal_there_are_no_control_sequences(self):
        screen = Screen(epochs=1)
        with screen.progress as progress:
            progress.update({"status": "succeeded", "progress": {"percent": 100.0}}, [epoch(1)])

        assert "\x1b" not in screen.file.getvalue()

    def test_on_a_terminal_a_bar_shows_the_state(self):
        screen = Screen(epochs=2, terminal=True)
        with screen.progress as progress:
            progress.update({"status": "running", "progress": {"percent": 25.0}}, [])

        assert "running" in screen.file.getvalue()
