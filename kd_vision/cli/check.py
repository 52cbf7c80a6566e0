"""`kd-vision check`."""

from __future__ import annotations

import argparse

from kd_vision.cli.options import add_config

_EPILOG = """\
Looks at the data (every defect), the label sets, the channels each loss needs, the input size, the teacher's mAP on
the validation split, the gradient of every distillation term on two batches, memory and disk.

exit status: 0 fine; 2 something is wrong; 3 the teacher is not better than the student (allow_weak_teacher: true
lets it pass).

example:
  kd-vision check configs/bccd_yolov8s_to_yolov8n.yaml
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "check",
        help="everything wrong with a config, before anything is spent",
        description="Find everything wrong with a run at once.",
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

    config = load_config(options.config, options.overrides)  # a mistake is told before torch is loaded
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
