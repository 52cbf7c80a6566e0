"""`kd-vision check`."""

from __future__ import annotations

import argparse

from kd_vision.cli.options import add_config

_EPILOG = """\
Checks the data (every defect), the classes, the signals that each loss needs, the input size, the teacher's mAP on
the validation split, the gradient of every distillation term on two batches, memory and disk.

exit status: 0 no mistake; 2 at least one mistake; 3 the teacher is not better than the untrained student, or its
classes look permuted or its boxes shifted (allow_weak_teacher: true permits it).

example:
  kd-vision check configs/bccd_yolov8s_to_yolov8n.yaml
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "check",
        help="check a config and its data before training",
        description="Check a config, its data, models and losses before training; report every mistake at once.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the subcommand."""
    from rich.console import Console
    from rich.markup import escape

    from kd_vision.config.load import load_config

    config = load_config(options.config, options.overrides)  # reports mistakes before torch is loaded
    from kd_vision.pipeline.check import check, exit_code

    console = Console(highlight=False)
    with Console(stderr=True).status("data") as status:
        findings = check(config, status.update)
    marks = {
        "ok": "[green]ok  [/]",
        "warning": "[yellow]warn[/]",
        "error": "[red]ERR [/]",
        "gate": "[red]GATE[/]",
    }
    for finding in findings:
        console.print(f"{marks[finding.state]} {finding.topic:<14} {escape(finding.text)}", soft_wrap=True)
    return exit_code(findings)
