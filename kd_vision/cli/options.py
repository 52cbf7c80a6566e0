"""Options that several subcommands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_config(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    """Add CONFIG, which can be left out if it is `optional`, and --set."""
    count = "?" if optional else None
    parser.add_argument("config", type=Path, nargs=count, metavar="CONFIG", help="YAML file, e.g. one of configs/")
    parser.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override any key, e.g. train.epochs=2 distill.0.weight=1",
    )


def add_device(parser: argparse._ActionsContainer) -> None:
    """Add --device."""
    parser.add_argument("--device", metavar="NAME", help="for torch models: cpu, cuda, cuda:1 (default: a GPU, if any)")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add --trust."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="load a .pt that needs classes outside the allow-list; this runs the code in it",
    )


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the options that were given, so that all others keep the defaults of the settings they belong to."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}
