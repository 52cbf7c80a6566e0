"""`kd-vision benchmark`."""

from __future__ import annotations

import argparse
from pathlib import Path

from kd_vision.cli.options import add_config

_EPILOG = """\
For every seed the plain baseline and the distilled student start from the same weights and are trained on the same
batches; the table shows mean and spread. --control adds a student whose teacher is the ground truth, through the same
kind of loss and with the same balance of rare classes: the gain over this control is the effect of the teacher alone.
After an interruption the same command continues.

examples:
  kd-vision benchmark configs/bccd_yolov8s_to_yolov8n.yaml --seeds 0 1 2
  kd-vision benchmark configs/bccd_yolov8s_to_yolov8n.yaml --seeds 0 1 2 --control
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "benchmark",
        help="compare teacher, plain baseline and distilled student",
        description="Measure the gain of distillation: teacher, baseline and distilled student over several seeds.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(parser)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="N", help="one pair of runs for each (default: 0)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="directory (default: runs/<config name>-benchmark)")
    parser.add_argument(
        "--control",
        action="store_true",
        help="also train a control with the ground truth as teacher: the effect of the losses alone",
    )
    parser.add_argument("--no-latency", action="store_true", help="leave export and ONNX latency out")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand."""
    from rich.console import Console

    from kd_vision.cli.progress import show_progress
    from kd_vision.cli.tables import console_table
    from kd_vision.config.load import load_config

    config = load_config(options.config, options.overrides)  # reports mistakes before torch is loaded
    from kd_vision.pipeline.benchmark import benchmark

    result = benchmark(
        config,
        options.seeds,
        options.out,
        progress=show_progress,
        with_latency=not options.no_latency,
        control=options.control,
    )
    console = Console()
    console.print(console_table(result.data))
    console.print(f"report   {result.report_html}", highlight=False, soft_wrap=True)
    return 0
