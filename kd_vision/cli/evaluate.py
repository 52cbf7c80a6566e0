"""`kd-vision evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from kd_vision.cli.options import add_device, add_trust

_EPILOG = """\
MODEL is a run directory, a .ckpt, a .pt, an .onnx or a COCO results .json; all are measured alike. A config .yaml
stands for its teacher, in the classes of the data.

examples:
  kd-vision evaluate runs/distilled --data datasets/bccd.yaml --split test
  kd-vision evaluate student.onnx --data datasets/bccd.yaml --json onnx.json
  kd-vision evaluate configs/bccd_yolov8s_to_yolov8n.yaml --data datasets/bccd.yaml
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "evaluate",
        help="COCO numbers of any model",
        description="Measure a model with pycocotools: the 12 COCO numbers, per class, per size.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="model to measure")
    parser.add_argument("--data", type=Path, required=True, metavar="DATA.yaml", help="data descriptor")
    parser.add_argument("--split", default="val", help="split to measure on (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the numbers")
    parser.add_argument("--predictions", type=Path, metavar="FILE", help="file for the boxes, as COCO results")
    parser.add_argument("--image-size", type=int, metavar="N", help="input side (default: as trained or exported)")
    parser.add_argument(
        "--backend",
        choices=("pycocotools", "faster"),
        default="pycocotools",
        help="faster: faster-coco-eval (default: pycocotools)",
    )
    add_device(parser)
    add_trust(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand."""
    from rich.console import Console

    from kd_vision.cli.progress import show_progress
    from kd_vision.cli.tables import console_metrics
    from kd_vision.config.schema import EvaluateConfig
    from kd_vision.pipeline.evaluate import evaluate

    result = evaluate(
        options.model,
        options.data,
        options.split,
        options.image_size,
        options.json,
        options.predictions,
        EvaluateConfig(backend=options.backend),
        options.trust,
        progress=show_progress,
        device=options.device,
    )
    title = f"{options.model} on {options.split}, {result.metrics.n_images} images at {result.image_size} px"
    Console().print(console_metrics(result.metrics, title))
    return 0
