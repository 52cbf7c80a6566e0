"""`kd-vision demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

_EPILOG = """\
Makes synthetic aerial scenes, trains a yolov8s teacher on plenty of labels, then a yolov8n student on few labels
twice: plainly, and taught by the teacher with unlabelled footage beside. Prints before and after, and ships an ONNX
file that passed the parity gate. About ten minutes on two CPU cores. Started again, it goes on where it was.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "demo",
        help="the whole story on synthetic aerial scenes, in about ten minutes",
        description="The whole story on synthetic aerial scenes.",
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
