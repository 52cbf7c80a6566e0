"""``kd-vision predict``: boxes on an image, a folder or a video."""

from __future__ import annotations

import argparse
from pathlib import Path

from kd_vision.cli.options import add_device, add_trust

_EPILOG = """\
Writes to --out: a copy of every image (or of the video) with the boxes drawn, and predictions.json,
a COCO results list whose entries also have the file name and the name of the class.

examples:
  kd-vision predict runs/bccd image.jpg
  kd-vision predict student.onnx footage.mp4 --out drawn --score 0.4
  kd-vision predict student.pt images/ --json
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the program."""
    parser = subparsers.add_parser(
        "predict",
        help="detect objects on an image, a folder or a video",
        description="Detect objects on an image, a folder of images or a video.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="run directory, .ckpt, .pt or .onnx")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="image, folder of images, or video")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("predictions"),
        metavar="DIR",
        help="folder of the results (default: %(default)s)",
    )
    parser.add_argument("--score", type=float, default=0.25, help="leave out boxes below (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="predictions.json only, no drawn copies")
    parser.add_argument("--image-size", type=int, metavar="N", help="input side in pixels (default: as trained)")
    add_device(parser)
    add_trust(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Predict, and print the number of boxes by class."""
    from rich.console import Console

    from kd_vision.cli.progress import show_progress
    from kd_vision.pipeline.predict import run_predict

    result = run_predict(
        args.model,
        args.source,
        args.out,
        score=args.score,
        draw=not args.json,
        image_size=args.image_size,
        trust=args.trust,
        progress=show_progress,
        device=args.device,
    )
    console = Console(highlight=False, soft_wrap=True)
    boxes = ", ".join(f"{count} {name}" for name, count in result.boxes.items() if count) or "none"
    console.print(f"{result.frames} images, boxes: {boxes}")
    console.print(str(result.predictions))
    for copy in result.copies[:5]:
        console.print(str(copy))
    if len(result.copies) > 5:
        console.print(f"... and {len(result.copies) - 5} more in {result.predictions.parent}")
    return 0
