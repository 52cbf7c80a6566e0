"""`kd-vision benchmark`."""

from __future__ import annotations

import argparse
from pathlib import Path

from kd_vision.cli.options import add_config

_EPILOG = """\
For every seed the plain twin and the distilled student start from the same weights and see the same batches; the
table shows mean and spread. With --control a third one learns from its own labels as if a teacher had predicted them,
rare classes lifted as in the distilled one: the gain over it is the teacher's. A benchmark that was stopped goes on
where it was when started again.

examples:
  kd-vision benchmark configs/bccd_yolov8s_to_yolov8n.yaml --seeds 0 1 2
  kd-vision benchmark configs/bccd_yolov8s_to_yolov8n.yaml --seeds 0 1 2 --control
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "benchmark",
        help="before / after: teacher, plain twin, distilled student",
        description="Measure what distillation brought: teacher, plain twin and distilled student over several seeds.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(parser)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="N", help="one pair of runs each (default: 0)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="directory (default: runs/<config name>-benchmark)")
    parser.add_argument(
        "--control",
        action="store_true",
        help="a third twin per seed, taught by its own labels: what the losses bring where nobody knows more",
    )
    parser.add_argument("--no-latency", action="store_true", help="leave export and ONNX latency out")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand."""
    from rich.console import Console

    from kd_vision.cli.progress import show_progress
    from kd_vision.cli.tables import console_table
    from kd_vision.config.load import load_config

    config = load_config(options.config, options.overrides)  # a mistake is told before torch is loaded
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
