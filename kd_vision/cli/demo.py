"""`kd-vision demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

_EPILOG = """\
Draws synthetic aerial scenes, trains a yolov8s teacher on many labels, then a yolov8n student on few labels twice:
without teacher, and distilled with unlabelled images in addition. Prints the comparison, and writes an ONNX file that
passed the parity gate. About ten minutes on two CPU cores. After an interruption the same command continues.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "demo",
        help="all steps on synthetic aerial scenes, in about ten minutes",
        description="Run all steps on synthetic aerial scenes: data, teacher, benchmark, export.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="directory (default: demo)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand."""
    from rich.console import Console

    from kd_vision.cli.progress import show_progress
    from kd_vision.cli.tables import console_table
    from kd_vision.pipeline.demo import demo

    console = Console(highlight=False)
    result = demo(options.out, progress=show_progress, log=lambda text: console.print(text, soft_wrap=True))
    console.print(console_table(result.benchmark.data))
    parity = result.export.parity
    console.print(f"report   {result.benchmark.report_html}", soft_wrap=True)
    console.print(f"student  {result.student}", soft_wrap=True)
    console.print(
        f"ONNX     {result.export.path}  (parity: {100 * parity.matched_share:.2f} % of boxes match)",
        soft_wrap=True,
    )
    return 0
