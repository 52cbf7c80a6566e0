"""`kd-vision crossfit`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kd_vision.cli.options import add_config

if TYPE_CHECKING:
    from rich.table import Table

    from kd_vision.pipeline.crossfit import CrossfitResult

_EPILOG = """\
A teacher says little beyond the labels on the very images that it was fine-tuned on. Here K teachers are trained, each
without one fold of the labelled images, and every image is labelled by the teacher that has not seen it. The table
compares the AP on seen and unseen images: the difference is the over-fit.

CONFIG is that of a plain training, the teacher being its student. DIR gets fold1/ to foldK/ (runs like those of
`kd-vision train`), crossfit.json, and store/, which a student's config takes:

  knowledge: DIR/store

Images without labels, where the data has any, are labelled by the ensemble of all teachers. The folds have alike
shares of every class. Files with equal bytes stay in one fold; with --group also images whose names agree in what the
expression matches, as neighbouring frames of a video must. After an interruption the same command continues.

examples:
  kd-vision crossfit configs/bccd_teacher_yolov8s.yaml --folds 5 --out runs/bccd_crossfit
  kd-vision crossfit configs/teacher.yaml --folds 4 --group '^(.+)_frame' --out runs/crossfit
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "crossfit",
        help="train teachers that label images they have not seen",
        description="Train K teachers, each without one fold, and store the labels of the one that has not seen it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(parser)
    parser.add_argument("--folds", type=int, required=True, metavar="K", help="number of teachers, 2 or more")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory: new, empty, or unfinished")
    parser.add_argument(
        "--group", metavar="PATTERN", help="regular expression on file names; images that agree in it share a fold"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand."""
    from rich.console import Console

    from kd_vision.cli.progress import show_progress
    from kd_vision.config.load import load_config

    config = load_config(options.config, options.overrides)  # reports mistakes before torch is loaded
    from kd_vision.pipeline.crossfit import RESULT, crossfit

    result = crossfit(config, options.folds, options.out, group=options.group, progress=show_progress)
    console = Console(highlight=False, soft_wrap=True)
    console.print(_table(result))
    console.print(f"store    {result.store.path}  ({len(result.store)} images, {result.unlabelled} without labels)")
    console.print(f"numbers  {result.directory / RESULT}")
    return 0


def _table(result: CrossfitResult) -> Table:
    from rich.table import Table

    threshold = result.store.score_threshold
    caption = f"seen, unseen: over the classes that both have; store: the boxes with a score from {threshold:g} on"
    table = Table(title="AP points of cross-fitted teachers", caption=caption)
    table.add_column("")
    for column in ("unseen images", "AP seen", "AP unseen", "over-fit", f"AP {result.split}"):
        table.add_column(column, justify="right")
    for fold in result.folds:
        table.add_row(fold.name, str(fold.images), *_gap(fold.seen_and_unseen_ap), _points(fold.final.ap))
    table.add_section()
    images = sum(fold.images for fold in result.folds)
    table.add_row("mean", "", *_gap(result.seen_and_unseen_ap), "")
    table.add_row("store", str(images), "", _points(result.stored.ap), "", "")
    return table


def _gap(pair: tuple[float, float] | None) -> tuple[str, str, str]:
    if pair is None:
        return _points(None), _points(None), _points(None)
    return _points(pair[0]), _points(pair[1]), f"{100 * (pair[0] - pair[1]):+.1f}"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
