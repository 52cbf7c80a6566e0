"""`kd-vision benchmark`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kd_vision.cli.options import add_config

if TYPE_CHECKING:
    from kd_vision.config.schema import RunConfig
    from kd_vision.config.trial import Trial
    from kd_vision.core.progress import Progress

_EPILOG = """\
For every seed three students start from the same weights and are trained on the same labelled batches:
  plain      without a teacher
  control    its teacher is the ground truth, through the same kind of loss and the same balance of rare classes
  distilled  with the teacher of the config
The gain over plain is what a user gets; the gain over control is the effect of the teacher alone. The table shows mean
and spread over seeds. After an interruption the same command continues.

A trial file has arms of its own, each a set of overrides of one config:
  config: ../bccd_yolov8s_to_yolov8n.yaml
  seeds: [0, 1, 2]
  arms:
    plain: {}
    distilled: {}
    lower_lr: {set: [train.lr=1e-3], description: half the learning rate}

examples:
  kd-vision benchmark configs/bccd_yolov8s_to_yolov8n.yaml --seeds 0 1 2
  kd-vision benchmark configs/bccd_yolov8s_to_yolov8n.yaml --set train.epochs=5 --out runs/short
  kd-vision benchmark configs/bccd_yolov8s_to_yolov8n.yaml --no-control --no-latency     two arms, no ONNX files
  kd-vision benchmark configs/trials/bccd_terms.yaml --jobs 2                            two runs side by side
  kd-vision benchmark configs/bccd_fcos_to_yolov8n.yaml --trial configs/trials/my_lr.yaml   its arms, this config
  kd-vision benchmark configs/bccd_yolov8s_to_yolov8n.yaml --check-budget                is the training long enough?
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "benchmark",
        help="compare teacher, plain baseline, control and distilled student",
        description="Measure the gain of distillation: teacher and students over several seeds.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(parser, optional=True)
    _add_arms(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="directory, e.g. runs/bccd (default: runs/<config name>-benchmark, runs/<trial name>)",
    )
    parser.add_argument(
        "--jobs",
        default="1",
        metavar="N",
        help="runs side by side, e.g. 2; auto: one per GPU, else one per two cores (default: 1). Fewer threads a run "
        "change the last bits of its numbers, so keep N within one benchmark",
    )
    parser.add_argument("--no-latency", action="store_true", help="leave export and ONNX latency out")
    parser.set_defaults(run=run)


def _add_arms(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is trained."""
    parser.add_argument(
        "--trial",
        type=Path,
        metavar="FILE",
        help="a trial file, e.g. configs/trials/bccd_terms.yaml; given with CONFIG, its arms are those of CONFIG",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        metavar="N",
        help="one run of each arm for each, e.g. 0 1 2 (default: those of the trial file, else 0)",
    )
    parser.add_argument("--no-control", action="store_true", help="leave the control out: two arms instead of three")
    parser.add_argument("--control", action="store_true", help=argparse.SUPPRESS)  # the default today
    parser.add_argument(
        "--check-budget",
        action="store_true",
        help="also train the plain twin of the first seed 1.5 x longer: if it gains much, all arms are too short",
    )


def run(options: argparse.Namespace) -> int:
    """Run the subcommand."""
    from rich.console import Console

    from kd_vision.cli.tables import console_table

    config = _read(options)  # reports mistakes before torch is loaded
    if options.control and not options.no_control:
        sys.stderr.write("kd-vision: --control is the default today; --no-control leaves it out\n")
    from kd_vision.pipeline.benchmark import benchmark

    result = benchmark(
        config,
        options.seeds,
        options.out,
        progress=_progress,
        with_latency=not options.no_latency,
        control=not options.no_control,
        jobs=options.jobs,
        check_budget=options.check_budget,
    )
    console = Console()
    console.print(console_table(result.data))
    console.print(f"report   {result.report_html}", highlight=False, soft_wrap=True)
    if not options.check_budget:
        console.print("budget   not checked; --check-budget trains the plain twin 1.5 x longer", highlight=False)
    return 0


def _read(options: argparse.Namespace) -> RunConfig | Trial:
    """Read the trial file or the config that the options name."""
    from kd_vision.config.load import load_config
    from kd_vision.config.trial import is_trial, load_trial
    from kd_vision.core.errors import RequestError

    if options.config is None and options.trial is None:
        raise RequestError("CONFIG: is missing; give a config with a teacher, or --trial FILE")
    if options.trial is None and not is_trial(options.config):
        return load_config(options.config, options.overrides)
    if options.trial is not None and options.config is not None and is_trial(options.config):
        raise RequestError(f"{options.config}: is a trial file, as is --trial {options.trial}; give one of them")
    if options.no_control:
        raise RequestError("--no-control: a trial file says itself which arms there are; leave it out")
    if options.trial is None:
        return load_trial(options.config, options.overrides)
    return load_trial(options.trial, options.overrides, options.config)


@contextmanager
def _progress(title: str) -> Iterator[Progress]:
    from kd_vision.cli.progress import show_progress
    from kd_vision.pipeline.overall_progress import TITLE

    with show_progress(title, time_left=title != TITLE) as bar:
        yield bar
