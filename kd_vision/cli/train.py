"""`kd-vision train`."""

from __future__ import annotations

import argparse
from pathlib import Path

from kd_vision.cli.options import add_config

_EPILOG = """\
examples:
  kd-vision train configs/bccd_yolov8s_to_yolov8n.yaml --out runs/distilled
  kd-vision train configs/bccd_teacher_yolov8s.yaml                     no teacher: plain training
  kd-vision train runs/distilled/config.yaml --out runs/distilled --resume

The run directory gets student.pt (opens with ultralytics.YOLO), metrics.json (COCO numbers of that file),
metrics.jsonl, TensorBoard and CSV logs, checkpoints/, report.html.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "train",
        help="train a student, with or without a teacher",
        description="Train a student; with distillation where the config has a teacher.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="run directory (default: runs/<config name>)")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint of the run directory")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand."""
    from rich.console import Console

    from kd_vision.cli.progress import show_progress
    from kd_vision.cli.tables import console_metrics
    from kd_vision.config.load import load_config

    config = load_config(options.config, options.overrides)  # reports mistakes before torch is loaded
    from kd_vision.pipeline.train import train

    result = train(config, options.out, options.resume, progress=show_progress)
    console = Console()
    console.print(console_metrics(result.metrics, f"{result.split}, {result.metrics.n_images} images"))
    console.print(f"student  {result.student}", highlight=False, soft_wrap=True)
    console.print(f"report   {result.directory / 'report.html'}", highlight=False, soft_wrap=True)
    return 0
