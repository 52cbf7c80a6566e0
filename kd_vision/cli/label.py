"""`kd-vision label`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kd_vision.cli.options import add_config, add_device, given

if TYPE_CHECKING:
    from kd_vision.pipeline.label import DatasetRequest

# Names of the thresholds in `PseudoLabelThresholds`, and their flags.
_THRESHOLDS = {"positive": "--min-score", "ignore": "--ignore-score", "keep_ignored": "--keep-ignored"}
_OF_BOXES = ("images", "split", "max_boxes", "top_k", "batch_size", "as_dataset", "positive", "keep_ignored", "ignore")
_OF_DENSE = ("seeds", "max_points")
_EPILOG = """\
Runs the config's teacher once on every image and stores its predictions: boxes, scores and class probabilities, in
the teacher's classes, in about half a kilobyte an image. Training with

  knowledge: stores/footage          # in the config; labels: {van: car, "*": drop} maps classes as for a teacher

then costs no more than plain training: the stored boxes are augmented together with the ground truth. A store can
train any number of students, also with other label maps. Images are identified by the SHA-256 of their files.

After an interruption the same command continues, and writes damaged shards again. Another teacher, other options or
other images need another --out.

examples:
  kd-vision label configs/bccd_yolov8s_to_yolov8n.yaml --split train unlabelled --out stores/bccd
  kd-vision label configs/pair.yaml --images footage/ --out stores/footage --set teacher.image_size=1280
  kd-vision label configs/pair.yaml --images footage/ --out stores/footage --as-dataset sets/footage --min-score 0.6
  kd-vision label configs/bccd_yolov8s_to_yolov8n.yaml --dense --seeds 0 1 2 --out stores/bccd_dense

--as-dataset writes COCO labels and a descriptor, dataset.yaml, that any trainer takes: boxes from --min-score on, in
the classes of the config's data; the other splits of that data are added, images are not copied.

--dense stores the teacher's dense predictions (class scores, boxes, distributions over box bins of every point with a
score) on the augmented training batches of the config. Any student, recipe and loss on the dense grid that is trained
on the same batches (same data, image size, batch size, epochs, seed and augmentation) then learns from them without
running the teacher; about twelve kilobytes an image with many objects.
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
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--images", type=Path, metavar="DIR", help="folder of images, searched with its subfolders")
    which.add_argument("--split", nargs="+", metavar="NAME", help="splits of the config's data; also: unlabelled")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the store: new, empty, or unfinished")
    parser.add_argument("--teacher", metavar="NAME", help="which teacher, where the config has several")
    _add_options(parser)
    _add_dense(parser)
    _add_dataset(parser)
    parser.set_defaults(run=run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is stored, and how fast")
    group.add_argument(
        "--score",
        type=float,
        metavar="S",
        help="leave out boxes below (default: 0.05); with --dense points (default: 0.03)",
    )
    group.add_argument("--max-boxes", type=int, metavar="N", help="boxes per image, best first (default: 100)")
    group.add_argument("--top-k", type=int, metavar="K", help="classes per box, likeliest first (default: 5)")
    group.add_argument("--batch-size", type=int, metavar="N", help="images per forward pass (default: 16)")
    group.add_argument(
        "--workers", default="auto", metavar="N", help="processes that load images (default: one less than cores)"
    )
    add_device(group)


def _add_dense(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("dense predictions on the training batches")
    group.add_argument("--dense", action="store_true", help="instead of boxes of images; see below")
    group.add_argument("--seeds", type=int, nargs="+", metavar="N", help="one store DIR/seed<N> for each of the seeds")
    group.add_argument("--max-points", type=int, metavar="N", help="points per image, best first (default: 1000)")


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("an ordinary data set from the store")
    group.add_argument("--as-dataset", type=Path, metavar="DIR", help="new or empty folder of the data set")
    group.add_argument(
        "--min-score", dest="positive", type=float, metavar="S", help="boxes from S on become labels (default: 0.5)"
    )
    group.add_argument(
        "--keep-ignored",
        action="store_const",
        const=True,
        help="boxes from --ignore-score to --min-score become crowds, which training ignores; else background",
    )
    group.add_argument(
        "--ignore-score", dest="ignore", type=float, metavar="S", help="with --keep-ignored (default: 0.2)"
    )
    # Former names of the last two.
    group.add_argument("--keep-doubtful", dest="keep_ignored", action="store_const", const=True, help=argparse.SUPPRESS)
    group.add_argument("--doubt", dest="ignore", type=float, help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand."""
    from rich.console import Console

    from kd_vision.cli.progress import show_progress
    from kd_vision.pipeline.label import LabelOptions, LabelResult, label

    _refuse_mixed(options)
    if options.dense:
        return _run_dense(options)
    result: LabelResult = label(
        options.config,
        options.out,
        options.images,
        options.split or (),
        options.overrides,
        options.teacher,
        LabelOptions(
            workers=_workers(options.workers),
            **given(options, "score", "max_boxes", "top_k", "batch_size", "device"),
        ),
        _dataset(options),
        progress=show_progress,
    )
    console = Console(highlight=False, soft_wrap=True)
    count = len(result.store)
    boxes = ", ".join(f"{number} {name}" for name, number in result.boxes.items() if number) or "none"
    console.print(f"{count} images, boxes: {boxes}")
    speed = f", {result.made / result.seconds:.1f} images/s" if result.made else ""
    console.print(f"labelled now: {result.made}{speed}; {result.bytes / count:.0f} bytes an image")
    console.print(f"store    {result.store.path}")
    if result.dataset is not None:
        ignored = f", {result.dataset.ignored} ignored" if result.dataset.ignored else ""
        console.print(f"data set {result.dataset.descriptor} ({result.dataset.labels} labels{ignored})")
    return 0


def _refuse_mixed(options: argparse.Namespace) -> None:
    """Refuse flags of boxes with --dense, and those of dense predictions without it."""
    from kd_vision.core.errors import RequestError

    names = _OF_BOXES if options.dense else _OF_DENSE
    wrong = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None]
    if wrong:
        raise RequestError(f"{', '.join(wrong)}: used only {'without' if options.dense else 'with'} --dense; leave out")


def _run_dense(options: argparse.Namespace) -> int:
    from rich.console import Console

    from kd_vision.cli.progress import show_progress
    from kd_vision.pipeline.label_dense import DenseOptions, label_dense

    workers = None if options.workers == "auto" else _workers(options.workers)
    results = label_dense(
        options.config,
        options.out,
        options.seeds or (),
        options.overrides,
        options.teacher,
        DenseOptions(workers=workers, **given(options, "score", "max_points", "device")),
        progress=show_progress,
    )
    console = Console(highlight=False, soft_wrap=True)
    for result in results:
        speed = f", {result.made / result.seconds:.2f} steps/s" if result.made else ""
        console.print(f"{result.steps} steps, labelled now: {result.made}{speed}")
        console.print(f"{result.bytes / 1e6:.1f} MB, {result.bytes / result.images:.0f} bytes an image")
        console.print(f"store    {result.store}")
    return 0


def _dataset(options: argparse.Namespace) -> DatasetRequest | None:
    from kd_vision.core.errors import RequestError
    from kd_vision.knowledge.dataset import PseudoLabelThresholds
    from kd_vision.pipeline.label import DatasetRequest

    thresholds = given(options, *_THRESHOLDS)
    if options.as_dataset is None and thresholds:
        flags = ", ".join(_THRESHOLDS[name] for name in thresholds)
        raise RequestError(f"{flags}: used only with --as-dataset; add --as-dataset DIR, or leave out {flags}")
    if options.as_dataset is None:
        return None
    if "ignore" in thresholds and "keep_ignored" not in thresholds:
        raise RequestError("--ignore-score: used only with --keep-ignored; add --keep-ignored")
    return DatasetRequest(options.as_dataset, PseudoLabelThresholds(**thresholds))


def _workers(text: str) -> int | str:
    from kd_vision.core.errors import RequestError

    if text != "auto" and not text.isdigit():
        raise RequestError(f"--workers: '{text}' is neither a number nor auto")
    return text if text == "auto" else int(text)
