"""`kd-vision label`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kd_vision.cli.options import add_config, add_device

if TYPE_CHECKING:
    from kd_vision.pipeline.label import DatasetRequest

_MIN_SCORE, _IGNORE_SCORE = 0.5, 0.2
_EPILOG = """\
Runs the config's teacher once on every image and stores its predictions: boxes, scores, class probabilities, in the
teacher's own classes. About half a kilobyte an image. Training with

  knowledge: stores/footage          # in the config; labels: {van: car, "*": drop} maps classes as for a teacher

then costs no more than plain training: the stored boxes go through the augmentation beside the ground truth. One
store serves any number of students, with other label maps too. Every image is known by the SHA-256 of its file.

Stopped or killed, the same command goes on where it was, and writes damaged shards again. Another teacher, other
options or other images need another --out.

examples:
  kd-vision label configs/bccd_yolov8s_to_yolov8n.yaml --split train unlabelled --out stores/bccd
  kd-vision label configs/pair.yaml --images footage/ --out stores/footage --set teacher.image_size=1280
  kd-vision label configs/pair.yaml --images footage/ --out stores/footage --as-dataset sets/footage --min-score 0.6

--as-dataset writes COCO labels and a descriptor, dataset.yaml, that any trainer takes: boxes from --min-score on, in
the classes of the config's data; the other splits of that data go along, images are not copied.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "label",
        help="store a teacher's predictions on images",
        description="Store a teacher's predictions on images, to train from them without running it again.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--images", type=Path, metavar="DIR", help="folder of images, searched with its subfolders")
    which.add_argument("--split", nargs="+", metavar="NAME", help="splits of the config's data; also: unlabelled")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the store: new, empty, or begun before")
    parser.add_argument("--teacher", metavar="NAME", help="which teacher, where the config has several")
    _add_options(parser)
    _add_dataset(parser)
    parser.set_defaults(run=run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is stored, and how fast")
    group.add_argument("--score", type=float, default=0.05, help="leave out boxes below (default: %(default)s)")
    group.add_argument(
        "--max-boxes", type=int, default=100, metavar="N", help="per image, best first (default: %(default)s)"
    )
    group.add_argument(
        "--top-k", type=int, default=5, metavar="K", help="classes per box, likeliest first (default: %(default)s)"
    )
    group.add_argument("--batch-size", type=int, default=16, metavar="N", help="images at once (default: %(default)s)")
    group.add_argument(
        "--workers", default="auto", metavar="N", help="processes that load images (default: cores less one)"
    )
    add_device(group)


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("an ordinary data set from the store")
    group.add_argument("--as-dataset", type=Path, metavar="DIR", help="new or empty folder for it")
    group.add_argument(
        "--min-score", type=float, metavar="S", help=f"boxes from S on are labels (default: {_MIN_SCORE})"
    )
    group.add_argument(
        "--keep-ignored",
        "--keep-doubtful",
        action="store_true",
        help="boxes from --ignore-score to --min-score become crowds, where nothing is learned; else background",
    )
    group.add_argument(
        "--ignore-score", "--doubt", type=float, metavar="S", help=f"see --keep-ignored (default: {_IGNORE_SCORE})"
    )


def run(options: argparse.Namespace) -> int:
    """Run the subcommand."""
    from rich.console import Console

    from kd_vision.cli.progress import show_progress
    from kd_vision.pipeline.label import LabelOptions, LabelResult, label

    result: LabelResult = label(
        options.config,
        options.out,
        options.images,
        options.split or (),
        options.overrides,
        options.teacher,
        LabelOptions(
            score=options.score,
            max_boxes=options.max_boxes,
            top_k=options.top_k,
            batch_size=options.batch_size,
            workers=_workers(options.workers),
            device=options.device,
        ),
        _dataset(options),
        progress=show_progress,
    )
    console = Console(highlight=False, soft_wrap=True)
    count = len(result.store)
    found = ", ".join(f"{boxes} {name}" for name, boxes in result.boxes.items() if boxes) or "nothing"
    console.print(f"{count} images, found: {found}")
    speed = f", {result.made / result.seconds:.1f} images/s" if result.made else ""
    console.print(f"labelled now: {result.made}{speed}; {result.bytes / count:.0f} bytes an image")
    console.print(f"store    {result.store.path}")
    if result.dataset is not None:
        ignored = f", {result.dataset.ignored} ignored" if result.dataset.ignored else ""
        console.print(f"data set {result.dataset.descriptor} ({result.dataset.labels} labels{ignored})")
    return 0


def _dataset(options: argparse.Namespace) -> DatasetRequest | None:
    from kd_vision.core.errors import RequestError
    from kd_vision.knowledge.dataset import PseudoLabelThresholds
    from kd_vision.pipeline.label import DatasetRequest

    names = ("min_score", "keep_ignored", "ignore_score")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) not in (None, False)]
    if options.as_dataset is None and given:
        raise RequestError(f"{', '.join(given)}: settings of the data set; say where it goes with --as-dataset DIR")
    if options.ignore_score is not None and not options.keep_ignored:
        raise RequestError("--ignore-score: has a meaning with --keep-ignored alone; add it")
    if options.as_dataset is None:
        return None
    least = _MIN_SCORE if options.min_score is None else options.min_score
    ignore = _IGNORE_SCORE if options.ignore_score is None else options.ignore_score
    return DatasetRequest(options.as_dataset, PseudoLabelThresholds(least, ignore, options.keep_ignored))


def _workers(text: str) -> int | str:
    from kd_vision.core.errors import RequestError

    if text != "auto" and not text.isdigit():
        raise RequestError(f"--workers: '{text}' is neither a number nor auto")
    return text if text == "auto" else int(text)
