"""The library logs; only the command line writes to the terminal."""

from __future__ import annotations

import ast
from pathlib import Path

import kd_vision

PACKAGE = Path(kd_vision.__file__).parent


def written_by(tree: ast.AST) -> set[str]:
    """What a module uses of the terminal: calls of `print`, imports of rich, writes to the standard streams."""
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            used.add("print")
        if isinstance(node, ast.Import):
            used |= {"rich" for name in node.names if name.name.split(".")[0] == "rich"}
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "rich":
            used.add("rich")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sys":
            used |= {node.attr} & {"stdout", "stderr"}
    return used


def test_what_would_be_found_is_found() -> None:
    code = "import rich\nfrom rich.table import Table\nprint(1)\nsys.stderr.write('x')"
    assert written_by(ast.parse(code)) == {"rich", "print", "stderr"}
    assert written_by(ast.parse("import sys\nsys.exit(print_nothing())")) == set()


def test_nothing_outside_the_command_line_writes_to_the_terminal() -> None:
    files = [file for file in PACKAGE.rglob("*.py") if "cli" not in file.relative_to(PACKAGE).parts]
    assert len(files) > 100
    used = {str(file.relative_to(PACKAGE)): written_by(ast.parse(file.read_text())) for file in files}
    assert {name: what for name, what in used.items() if what} == {}
