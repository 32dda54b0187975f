"""The command line: its options, and the settings that they stand for."""

import argparse
from pathlib import Path

from benchmarks.vtab.folder import Decoding
from benchmarks.vtab.methods import METHODS
from benchmarks.vtab.settings import (
    DEFAULT_PAIR,
    RATE_FACTORS,
    Machine,
    Mode,
    Schedule,
    Settings,
    Tuning,
)
from core.catalog.pairs import PAIRS
from core.errors import InvalidError

#: Three of the five seeds of the VPT paper, and the one of the released code.
STRICT_SEEDS, PAPER_SEEDS = (42, 44, 82), (42,)
_WARMUP_SHARE = 10


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m benchmarks.vtab`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vtab", description="VTAB-1k on a folder of yours; docs/vtab.md."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_check(commands.add_parser("check", help="say all that is wrong with a folder"))
    _add_run(commands.add_parser("run", help="fill the table; what is filled already stays"))
    table = commands.add_parser("table", help="print the table of a results file")
    table.add_argument("results", nargs="+", type=Path, help="results files, JSON lines")
    table.add_argument("--json", action="store_true", help="instead of Markdown")
    table.add_argument(
        "--partial", action="store_true", help="average over the datasets that are there"
    )
    table.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="leave rows with another value of a setting out, for example hidden_dim=8",
    )
    return parser


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, help="the folder that holds cifar, caltech101, …")
    parser.add_argument("--datasets", nargs="+", help="only these, for example cifar100 dtd")
    parser.add_argument(
        "--decode",
        type=Decoding,
        choices=list(Decoding),
        default=Decoding.SAMPLE,
        help="how many images the check opens (default: %(default)s)",
    )


def _add_check(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    parser.add_argument("--json", action="store_true", help="digests and problems as JSON")


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    parser.add_argument("--out", type=Path, required=True, help="results file, JSON lines")
    parser.add_argument("--mode", type=Mode, choices=list(Mode), default=Mode.STRICT)
    parser.add_argument("--methods", nargs="+", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 42 44 82; in paper 42")
    networks = parser.add_argument_group("networks and method")
    networks.add_argument("--pair", help=f"default: {DEFAULT_PAIR}; of {', '.join(PAIRS)}")
    networks.add_argument("--student", help="timm name, instead of --pair")
    networks.add_argument("--teacher", help="timm name, for iDAT; with --student")
    networks.add_argument("--hidden-dim", type=int, default=4)
    networks.add_argument("--scale", type=float, default=0.1, help="of P and PS")
    networks.add_argument("--temperature", type=float, default=5.0, help="of kl")
    networks.add_argument("--loss-weight", type=float, default=1.0, help="of the distillation")
    schedule = parser.add_argument_group("schedule; the defaults are the released code's")
    schedule.add_argument("--epochs", type=int, default=Schedule.epochs)
    schedule.add_argument("--warmup-epochs", type=int, help="default: a tenth of them, at most 10")
    schedule.add_argument("--cooldown-epochs", type=int, help="default: likewise")
    schedule.add_argument("--batch-size", type=int, default=Schedule.batch_size)
    strict = parser.add_argument_group("what `strict` chooses from")
    strict.add_argument("--tuning", type=Tuning, choices=list(Tuning), default=Tuning.RECIPE)
    factors = ", ".join(f"{factor:g}" for factor in RATE_FACTORS)
    strict.add_argument(
        "--learning-rates",
        nargs="+",
        type=float,
        help=f"for all datasets alike (default: the recipe's times {factors})",
    )
    strict.add_argument("--selection-seed", type=int, default=0)
    _add_machine(parser)


def _add_machine(parser: argparse.ArgumentParser) -> None:
    machine = parser.add_argument_group("this machine")
    machine.add_argument("--weights-dir", type=Path, help="folder with NAME.safetensors")
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    machine.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    machine.add_argument("--threads", type=int, help="of torch on the CPU")
    machine.add_argument(
        "--deterministic", action="store_true", help="on a GPU: the same bits in every run"
    )
    machine.add_argument("--work-dir", type=Path, help="default: the results file's name + .work")
    machine.add_argument(
        "--drop-images", action="store_true", help="remove a finished dataset's decoded images"
    )
    machine.add_argument("--checkpoint-every-s", type=float, default=60.0)
    service = parser.add_argument_group("on a running service instead")
    service.add_argument("--service", metavar="URL", help="submit jobs there")
    service.add_argument("--api-key-env", metavar="NAME", help="variable that holds the key")
    service.add_argument(
        "--wait-s", type=float, default=86_400.0, help="longest wait for a dataset or a job"
    )


def build_settings(options: argparse.Namespace) -> Settings:
    """Return what the options of `run` ask for.

    Raises:
        InvalidError: options that contradict each other.
    """
    pair, student, teacher = _find_networks(options)
    tenth = min(Schedule.warmup_epochs, options.epochs // _WARMUP_SHARE)
    schedule = Schedule(
        epochs=options.epochs,
        warmup_epochs=tenth if options.warmup_epochs is None else options.warmup_epochs,
        cooldown_epochs=tenth if options.cooldown_epochs is None else options.cooldown_epochs,
        batch_size=options.batch_size,
    )
    return Settings(
        mode=options.mode,
        pair=pair,
        student=student,
        teacher=teacher,
        hidden_dim=options.hidden_dim,
        scale=options.scale,
        temperature=options.temperature,
        loss_weight=options.loss_weight,
        schedule=schedule,
        precision=options.precision,
        tuning=options.tuning,
        learning_rates=tuple(options.learning_rates) if options.learning_rates else None,
        selection_seed=options.selection_seed,
    )


def build_machine(options: argparse.Namespace) -> Machine:
    """Return where the options of `run` want it done."""
    return Machine(
        device=options.device,
        weights_dir=options.weights_dir,
        work_dir=find_work_dir(options),
        keep_images=not options.drop_images,
        checkpoint_every_s=options.checkpoint_every_s,
    )


def find_work_dir(options: argparse.Namespace) -> Path:
    """Return the work folder: beside the results unless another was named."""
    out: Path = options.out
    work_dir: Path | None = options.work_dir
    return out.with_name(out.name + ".work") if work_dir is None else work_dir


def parse_only(texts: list[str]) -> dict[str, str]:
    """Return the settings that `--only` names.

    Raises:
        InvalidError: one is not `name=value`.
    """
    pairs = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise InvalidError(f"--only {text!r} is not NAME=VALUE")
        pairs[name] = value
    return pairs


def _find_networks(options: argparse.Namespace) -> tuple[str, str, str]:
    """Return the pair's name or nothing, the student and the teacher."""
    if options.student is None:
        if options.teacher is not None:
            raise InvalidError("--teacher goes with --student; or name both by --pair")
        name = options.pair or DEFAULT_PAIR
        if name not in PAIRS:
            raise InvalidError(f"there is no pair {name!r}; allowed: {', '.join(PAIRS)}")
        return name, PAIRS[name].student, PAIRS[name].teacher
    if options.pair is not None:
        raise InvalidError("--pair names the student already; leave --student or --pair out")
    return "", options.student, options.teacher or ""
