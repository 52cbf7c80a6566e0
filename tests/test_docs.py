"""The pages say what the code does: every example of a config loads, and the table of pairs is the code's own."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from kd_vision.config.load import load_config

ROOT = Path(__file__).parents[1]
TEACHERS = (ROOT / "docs" / "teachers.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", TEACHERS, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_every_example_of_the_guide_is_a_config(number: int, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(EXAMPLES[number], encoding="utf-8")
    assert load_config(path, files_exist=False).is_taught


def test_the_page_of_pairs_is_what_the_code_says() -> None:
    written = runpy.run_path(str(ROOT / "tools" / "write_pairs.py"))
    assert written["PAGE"].read_text(encoding="utf-8") == written["page"]()
