"""``kd-vision export``: a model as a file for the device."""

from __future__ import annotations

import argparse
from pathlib import Path

from kd_vision.cli.options import add_trust

_EPILOG = """\
The file is written under another name first, shown the same images as the model, and gets its own
name only if it finds the same boxes. With --data these are the images of the validation split, and
AP is compared as well; without, they are seeded noise and drawn shapes, which proves the graph but
not the figure.

examples:
  kd-vision export runs/bccd --out student.onnx --data datasets/bccd.yaml
  kd-vision export student.pt --out student.onnx --image-size 320 --batch dynamic --nms --score-threshold 0.25

exit status: 0 written and proven; 2 the request is wrong; 3 the file does not find the same boxes
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the program."""
    parser = subparsers.add_parser(
        "export",
        help="write a model as ONNX and prove that it finds the same boxes",
        description="Write a model as ONNX and prove that the file finds the same boxes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="run directory, .ckpt or ultralytics .pt")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.onnx", help="the file to write")
    parser.add_argument("--data", type=Path, metavar="DATA.yaml", help="data descriptor: prove on real images")
    parser.add_argument("--split", default="val", help="split of --data to prove on (default: %(default)s)")
    parser.add_argument("--image-size", type=int, metavar="N", help="input side in pixels (default: as trained)")
    parser.add_argument(
        "--batch", type=_batch, default=1, metavar="N|dynamic", help="images per call (default: %(default)s)"
    )
    parser.add_argument("--opset", type=int, metavar="N", help="operator set, 11 to 20 (default: 18)")
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32", help="default: %(default)s")
    parser.add_argument("--no-simplify", action="store_true", help="leave the graph as it was traced")
    _add_nms(parser)
    add_trust(parser)
    parser.set_defaults(run=run)


def _add_nms(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("non-maximum suppression inside the graph")
    group.add_argument("--nms", action="store_true", help="put it in: rows x1 y1 x2 y2 score label come out")
    group.add_argument("--score-threshold", type=float, metavar="S", help="drop boxes below (default: 0.001)")
    group.add_argument("--nms-iou", type=float, metavar="IOU", help="overlap that drops a box (default: 0.7)")
    group.add_argument("--max-detections", type=int, metavar="N", help="rows per image (default: 300)")


def run(args: argparse.Namespace) -> int:
    """Do it and say what was made."""
    from rich.console import Console

    from kd_vision.pipeline.export import run_export

    options = _options(args)
    result = run_export(args.model, args.out, args.data, args.split, args.image_size, options, args.trust, quiet=False)
    console = Console(highlight=False, soft_wrap=True)
    proof = result.parity
    boxes = proof.reference_boxes + proof.exported_boxes
    console.print(
        f"{result.path}  {result.size_bytes / 1e6:.1f} MB, {result.image_size} px, output {result.output_format}"
    )
    console.print(
        f"parity  {proof.matched_share:.2%} of {boxes} boxes have a partner; "
        f"99 % differ by at most {proof.score_p99:.1e} in score and {proof.pixels_p99:.1e} pixels"
    )
    if proof.ap_reference is not None and proof.ap_exported is not None:
        console.print(f"AP      model {100 * proof.ap_reference:.2f}, file {100 * proof.ap_exported:.2f}")
    console.print(f"images  {proof.images}: {proof.source}")
    if result.latency is not None:
        latency = result.latency
        console.print(f"latency {latency.median_ms:.1f} ms median, {latency.p90_ms:.1f} ms p90 (1 CPU thread)")
    return 0


def _options(args: argparse.Namespace) -> dict[str, object]:
    """Collect what was asked for; what was not keeps the exporter's default."""
    from kd_vision.core.errors import RequestError

    baked = {
        "score_threshold": args.score_threshold,
        "nms_iou": args.nms_iou,
        "max_detections": args.max_detections,
    }
    given = {key: value for key, value in baked.items() if value is not None}
    if given and not args.nms:
        flags = ", ".join(f"--{key.replace('_', '-')}" for key in given)
        raise RequestError(f"{flags}: acts on NMS inside the graph only; add --nms, or leave it out")
    if args.opset is not None:
        given["opset"] = args.opset
    return {
        "batch": args.batch,
        "nms": args.nms,
        "precision": args.precision,
        "simplify": not args.no_simplify,
        **given,
    }


def _batch(text: str) -> int | str:
    if text == "dynamic":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number nor 'dynamic'") from None
