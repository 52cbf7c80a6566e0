"""The pages say what the code does: configs load, the table of pairs is generated, each room has its API page."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import yaml

from kd_vision.config.load import load_config
from kd_vision.core.version import __version__

ROOT = Path(__file__).parents[1]
TEACHERS = (ROOT / "docs" / "teachers.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", TEACHERS, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_every_example_of_the_guide_is_a_config(number: int, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(EXAMPLES[number], encoding="utf-8")
    assert load_config(path, files_exist=False).is_distilled


def test_the_page_of_pairs_is_what_the_code_says() -> None:
    written = runpy.run_path(str(ROOT / "tools" / "write_pairs.py"))
    assert written["PAGE"].read_text(encoding="utf-8") == written["page"]()


def test_every_room_has_a_page_of_its_api() -> None:
    rooms = {path.parent.name for path in (ROOT / "kd_vision").glob("*/__init__.py")}
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md")}
    assert set(pages) == rooms | {"index"}
    assert all(f"\n::: kd_vision.{room}\n" in pages[room] for room in rooms)


def test_the_citation_has_the_version_of_the_package() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__
