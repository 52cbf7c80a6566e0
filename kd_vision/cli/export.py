"""``kd-vision export``: a model as a file for the device."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kd_vision.cli.options import add_trust, given
from kd_vision.export import EXPORTERS

if TYPE_CHECKING:
    from kd_vision.pipeline.export import ExportResult

_EPILOG = """\
Parity gate: the file is written to a hidden folder first, detects on the same images as the model, and
moves to --out only if both detect the same boxes. With --data these are the images of the validation
split, and AP is compared too. Without, they are seeded noise and drawn shapes: this proves the graph, but
says nothing of AP.

Which settings:
  a device that reads one image at a time     the defaults
  a server that batches                       --batch dynamic
  a device without postprocessing code        --nms --score-threshold 0.25: boxes come out of the graph
  a smaller, faster input                     --image-size 320, if the model was trained for it
  an old runtime                              --opset 11, or --no-simplify if the graph is refused

formats:
{formats}

examples:
  kd-vision export runs/bccd --out student.onnx --data datasets/bccd.yaml
  kd-vision export student.pt --out student.onnx --image-size 320 --batch dynamic --nms --score-threshold 0.25

exit status: 0 written and proven; 2 the request is wrong; 3 the file does not detect the same boxes
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the program."""
    formats = (
        f"  {name:8} {entry.suffix}, {'/'.join(entry.precisions)}: {entry.summary}" for name, entry in EXPORTERS.items()
    )
    parser = subparsers.add_parser(
        "export",
        help="write a model as ONNX and prove that it detects the same boxes",
        description="Write a model as a file for the device and prove that the file detects the same boxes.",
        epilog=_EPILOG.format(formats="\n".join(formats)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="run directory, .ckpt or ultralytics .pt")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write, e.g. student.onnx")
    parser.add_argument("--format", choices=tuple(EXPORTERS), help="export format (default: by the suffix of --out)")
    parser.add_argument("--data", type=Path, metavar="DATA.yaml", help="data descriptor: prove on real images")
    parser.add_argument("--split", default="val", help="split of --data to prove on (default: %(default)s)")
    parser.add_argument("--image-size", type=int, metavar="N", help="input side in pixels (default: as trained)")
    parser.add_argument("--batch", type=_batch, metavar="N|dynamic", help="images per call (default: 1)")
    parser.add_argument("--opset", type=int, metavar="N", help="ONNX operator set, 11 to 20 (default: 18)")
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), help="number type (default: fp32)")
    parser.add_argument("--no-simplify", action="store_true", help="keep the graph as it was traced")
    _add_nms(parser)
    add_trust(parser)
    parser.set_defaults(run=run)


def _add_nms(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("non-maximum suppression inside the graph")
    group.add_argument("--nms", action="store_true", help="append NMS: the output is rows x1 y1 x2 y2 score label")
    group.add_argument("--score-threshold", type=float, metavar="S", help="drop boxes below (default: 0.001)")
    group.add_argument("--nms-iou", type=float, metavar="IOU", help="overlap that drops a box (default: 0.7)")
    group.add_argument("--max-detections", type=int, metavar="N", help="rows per image (default: 300)")


def run(args: argparse.Namespace) -> int:
    """Export and print what was made."""
    from rich.console import Console

    from kd_vision.cli.progress import show_progress
    from kd_vision.pipeline.export import run_export

    result = run_export(
        args.model,
        args.out,
        args.data,
        args.split,
        args.image_size,
        _options(args),
        args.trust,
        progress=show_progress,
        export_format=args.format,
    )
    console = Console(highlight=False, soft_wrap=True)
    for line in _summary(result):
        console.print(line)
    return 0


def _summary(result: ExportResult) -> list[str]:
    parity, latency = result.parity, result.latency
    boxes = parity.reference_boxes + parity.exported_boxes
    lines = [
        f"{result.path}  {result.size_bytes / 1e6:.1f} MB, {result.image_size} px, output {result.output_format}",
        f"parity  {parity.matched_share:.2%} of {boxes} boxes have a partner; "
        f"99 % differ by at most {parity.score_p99:.1e} in score and {parity.pixels_p99:.1e} pixels",
    ]
    if parity.ap_reference is not None and parity.ap_exported is not None:
        lines.append(f"AP      model {100 * parity.ap_reference:.2f}, file {100 * parity.ap_exported:.2f}")
    lines.append(f"images  {parity.images}: {parity.source}")
    if latency is not None:
        lines.append(f"latency {latency.median_ms:.1f} ms median, {latency.p90_ms:.1f} ms p90 (1 CPU thread)")
    return lines


def _options(args: argparse.Namespace) -> dict[str, object]:
    """Return the settings that were given; all others keep the default of the format's config."""
    from kd_vision.core.errors import RequestError

    thresholds = given(args, "score_threshold", "nms_iou", "max_detections")
    if thresholds and not args.nms:
        flags = ", ".join(f"--{key.replace('_', '-')}" for key in thresholds)
        raise RequestError(f"{flags}: used only with --nms; add --nms, or leave out {flags}")
    options = thresholds | given(args, "batch", "precision", "opset")
    if args.nms:
        options["nms"] = True
    if args.no_simplify:
        options["simplify"] = False
    return options


def _batch(text: str) -> int | str:
    if text == "dynamic":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number nor 'dynamic'") from None
