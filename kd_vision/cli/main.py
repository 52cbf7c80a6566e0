"""The command `kd-vision`."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kd_vision.core.errors import KDVisionError
from kd_vision.core.version import __version__

COMMANDS = (
    "demo",
    "check",
    "inherit",
    "crossfit",
    "train",
    "label",
    "evaluate",
    "benchmark",
    "export",
    "predict",
    "data",
)

_EPILOG = """\
The usual order of work:
  kd-vision check     configs/bccd_yolov8s_to_yolov8n.yaml     find mistakes before training
  kd-vision label     configs/bccd_yolov8s_to_yolov8n.yaml --images footage --out stores/footage
  kd-vision train     configs/bccd_yolov8s_to_yolov8n.yaml     the distilled student
  kd-vision benchmark configs/bccd_yolov8s_to_yolov8n.yaml     teacher, plain baseline, distilled student
  kd-vision export    runs/NAME --out student.onnx --data datasets/bccd.yaml

Exit status: 0 done; 1 the work failed; 2 the request is wrong; 3 a gate failed; 130 stopped.
"""


_SAME = "; the same command continues"
_CONTINUE = {
    "train": "; if it wrote a checkpoint, continue with --resume",
    "label": _SAME,
    "crossfit": _SAME,
    "benchmark": _SAME,
    "demo": _SAME,
}


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all subcommands; nothing heavy is imported."""
    parser = argparse.ArgumentParser(
        prog="kd-vision",
        description="Knowledge distillation of object detectors: train, measure and export compact students.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kd-vision {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"kd_vision.cli.{name}").add_parser(subparsers)
    return parser


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Write what the library logs to standard error, a plain line each, for as long as a command runs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log, level = logging.getLogger("kd_vision"), logging.getLogger("kd_vision").level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; turn errors into a line and an exit status."""
    options = build_parser().parse_args(arguments)
    try:
        with _log_to_stderr():
            return int(options.run(options))
    except KDVisionError as error:
        if options.debug:
            traceback.print_exc()
        for line in str(error).splitlines():
            sys.stderr.write(f"kd-vision: {line}\n")
        return error.exit_code
    except OSError as error:
        if options.debug or error.filename is None:
            raise
        sys.stderr.write(f"kd-vision: {error.filename}: {error.strerror}\n")
        return KDVisionError.exit_code
    except KeyboardInterrupt:
        sys.stderr.write(f"kd-vision: stopped{_CONTINUE.get(options.command, '')}\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
