"""`kd-vision data`: check, convert and make data sets, select images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kd_vision.cli.options import add_trust
from kd_vision.data.formats import writable_formats

if TYPE_CHECKING:
    from rich.console import Console

    from kd_vision.data.records import Defect

_CHECK = """\
Reads every label and decodes every image. Errors: missing, corrupt or duplicated images, images
that are in two splits (or unlabelled and in a split for evaluation), wrong sizes, unknown
categories, boxes without area or outside the image. Warnings: near duplicates in two splits,
boxes that leave the image by less than a pixel.

exit status: 0 nothing or only warnings, 2 at least one error

example:
  kd-vision data check datasets/bccd.yaml
"""
_CONVERT = """\
Writes all splits and a descriptor, DIR/dataset.yaml, that the other commands take. Images are
linked. Crowd boxes are left out, and counted, where the format cannot mark them (YOLO).

example:
  kd-vision data convert datasets/bccd_voc.yaml --to coco --out bccd_coco
"""
_SYNTH = """\
Draws top-down scenes with vehicles and people: a set to try commands on, with exact labels.
The same seed gives the same labels, byte for byte.

example:
  kd-vision data synth --out scenes --train 200 --val 100 --unlabelled 400
"""
_SELECT = """\
Ranks unlabelled images by their value for training, the mean of
  disagreement  1 - 2 sum min(t, s) / (sum t + sum s), over boxes of teacher and student paired at IoU 0.5 within a
                class, t and s their scores; needs --student
  uncertainty   mean entropy of the teacher's scores: most near 0.5
  rarity        max of t sqrt(f_min / f_c), f_c the sum of scores of a class in the store
and selects the best up to --budget, without near duplicates (64-bit difference hash, 4 bits or fewer apart).

The list is for the data descriptor:  unlabelled: {images: DIR, list: selected.txt}
FILE.csv lists every image with its scores and why it was left out.

example:
  kd-vision data select stores/footage --images footage/ --budget 2000 --student runs/first --out selected.txt
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `data` with its subcommands."""
    parser = subparsers.add_parser(
        "data",
        help="check, convert and make data sets, select images",
        description="Check, convert and make data sets, and select images to train on.",
    )
    commands = parser.add_subparsers(dest="data_command", metavar="COMMAND", required=True)
    _add_check(commands)
    _add_convert(commands)
    _add_synth(commands)
    _add_select(commands)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit status."""
    if args.data_command == "check":
        return _run_check(args)
    if args.data_command == "convert":
        return _run_convert(args)
    if args.data_command == "select":
        return _run_select(args)
    return _run_synth(args)


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _subparser(commands, "check", "list every defect of a data set", _CHECK)
    parser.add_argument("data", type=Path, metavar="DATA.yaml", help="data descriptor")


def _add_convert(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _subparser(commands, "convert", "write a data set in another format", _CONVERT)
    parser.add_argument("data", type=Path, metavar="DATA.yaml", help="data descriptor")
    parser.add_argument("--to", required=True, choices=writable_formats(), help="format to write")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="new or empty folder")
    parser.add_argument("--copy-images", action="store_true", help="copy images instead of linking them")


def _add_synth(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _subparser(commands, "synth", "draw synthetic aerial scenes", _SYNTH)
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="new or empty folder; earlier scenes in it are replaced"
    )
    for split, count in (("train", 200), ("val", 100), ("test", 100), ("unlabelled", 400)):
        text = f"number of {split} images; 0: none (default {count})"
        parser.add_argument(f"--{split}", type=int, default=count, metavar="N", help=text)
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (default 0)")
    parser.add_argument("--image-size", type=int, default=320, help="side in pixels (default 320)")
    parser.add_argument("--difficulty", type=float, default=0.5, help="0 easy to 1 hard (default 0.5)")


def _add_select(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _subparser(commands, "select", "select the unlabelled images of most value for training", _SELECT)
    parser.add_argument("store", type=Path, metavar="STORE", help="folder that `kd-vision label` wrote")
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="folder of the images")
    parser.add_argument("--budget", required=True, type=int, metavar="N", help="number of images to choose")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE.txt", help="the list; a .csv is written next to it"
    )
    parser.add_argument("--student", type=Path, metavar="MODEL", help="run directory, .pt or .onnx to compare with")
    parser.add_argument("--image-size", type=int, metavar="N", help="the student's input side (default: as trained)")
    add_trust(parser)


def _subparser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, epilog: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _run_check(args: argparse.Namespace) -> int:
    from rich.console import Console

    from kd_vision.cli.progress import show_progress
    from kd_vision.data.check import check_data
    from kd_vision.data.descriptor import load_descriptor

    console = Console()
    descriptor = load_descriptor(args.data)
    with show_progress("checking images") as progress:
        defects = check_data(descriptor, progress.step)
    errors = sum(defect.level == "error" for defect in defects)
    if defects:
        _print_defects(console, defects)
    warnings = len(defects) - errors
    console.print(f"{args.data}: {errors} error{_s(errors)}, {warnings} warning{_s(warnings)}", soft_wrap=True)
    return 2 if errors else 0


def _run_convert(args: argparse.Namespace) -> int:
    from rich.console import Console

    from kd_vision.cli.progress import show_progress
    from kd_vision.data.convert import convert
    from kd_vision.data.descriptor import load_descriptor

    console = Console()
    descriptor = load_descriptor(args.data)
    with show_progress("placing images") as progress:
        done = convert(descriptor, args.out, args.to, args.copy_images, progress.step)
    console.print(f"{done.descriptor}: {done.images} images, {done.boxes} boxes as {args.to}")
    if done.crowd_dropped:
        console.print(f"left out, as {args.to.upper()} cannot hold them: {done.crowd_dropped} crowd boxes")
    if done.zero_area_dropped:
        console.print(f"left out: {done.zero_area_dropped} boxes without area")
    return 0


def _run_synth(args: argparse.Namespace) -> int:
    from rich.console import Console

    from kd_vision.cli.progress import show_progress
    from kd_vision.scenes import write_scenes

    splits = {name: getattr(args, name) for name in ("train", "val", "test") if getattr(args, name) != 0}
    console = Console()
    size = (args.image_size, args.difficulty)
    with show_progress("drawing scenes") as progress:
        descriptor = write_scenes(args.out, splits, args.unlabelled, args.seed, *size, progress=progress.step)
    console.print(f"{descriptor}: {sum(splits.values()) + args.unlabelled} scenes")
    return 0


def _run_select(args: argparse.Namespace) -> int:
    from rich.console import Console

    from kd_vision.cli.progress import show_progress
    from kd_vision.pipeline.select import select

    done = select(
        args.store,
        args.images,
        args.budget,
        args.out,
        args.student,
        args.image_size,
        args.trust,
        progress=show_progress,
    )
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{done.out}: {done.chosen} of {done.images} images; {done.alike} left out as near duplicates")
    console.print(f"{done.table}: every image with its scores and the reason why it was left out")
    return 0


def _print_defects(console: Console, defects: list[Defect]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("level", "kind", "where", "what", show_lines=False)
    for column in table.columns[2:]:
        column.overflow = "fold"
    for defect in defects:
        where = f"{defect.file}:{defect.line}" if defect.line else str(defect.file)
        level = Text(defect.level, style="red" if defect.level == "error" else "yellow")
        table.add_row(level, defect.kind, Text(where), Text(defect.message))
    console.print(table)


def _s(count: int) -> str:
    return "" if count == 1 else "s"
