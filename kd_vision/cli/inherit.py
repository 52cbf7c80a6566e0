"""`kd-vision inherit`."""

from __future__ import annotations

import argparse
from pathlib import Path

from kd_vision.cli.options import add_config

_EPILOG = """\
Makes the student a small copy of its teacher, without labels and without a training step: of each group of channels
that must stay together the strongest are kept, so that every weight is a slice of the teacher's; then each layer is
fitted in closed form to the teacher's maps on some dozens of images. The file is a start for training
(student.weights), and shows what the student knows before its first step. `train`, `benchmark` and `check` do the
same by themselves where the config has

  student: {family: ultralytics, model: yolov8n, inherit: {from: teacher}}

examples:
  kd-vision inherit configs/bccd_inherit.yaml --out start.pt
  kd-vision inherit configs/bccd_yolov8s_to_yolov8n.yaml --set student.inherit.from=teacher --out start.pt
  kd-vision inherit configs/pair.yaml --set student.inherit.from=big.pt student.inherit.strength=score --out start.pt
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "inherit",
        help="write a student that is a small copy of its teacher",
        description="Write a student that starts as a small copy of a larger model of its family.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.pt", help="the student's weights")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand."""
    from rich.console import Console

    from kd_vision.cli.progress import show_progress
    from kd_vision.pipeline.inherit import inherit
    from kd_vision.report.tables import points

    result = inherit(options.config, options.out, options.overrides, show_progress)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(str(result.inheritance))
    console.print(
        f"AP on {result.split} before any training: {points(result.metrics.ap)} (AP50 {points(result.metrics.ap50)}); "
        f"the model it inherits from: {points(result.teacher.ap)}"
    )
    console.print(f"student  {result.student}")
    return 0
