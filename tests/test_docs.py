"""The pages and the code agree: examples are configs, tables list what there is, generated pages are up to date."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import yaml

import kd_vision
from kd_vision.config.load import load_config
from kd_vision.core.version import __version__
from kd_vision.detectors import FAMILIES
from kd_vision.engine.config import TrainConfig
from kd_vision.losses import LOSSES, load_loss
from kd_vision.runtime.metadata import RENAMED_FORMATS
from kd_vision.runtime.output_formats import OUTPUT_FORMATS
from kd_vision.teachers import TEACHERS, teacher_entry
from kd_vision.teachers.onnx import OnnxConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "teachers.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", GUIDE, flags=re.DOTALL)


def table(page: str, title: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its head."""
    section = page.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def names_in(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_every_example_of_the_guide_is_a_config(number: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(EXAMPLES[number], encoding="utf-8")
    config = load_config(path, files_exist=False)
    assert config.is_distilled
    assert config.terms
    assert caplog.messages == []  # no old name of a key


def test_the_guide_lists_every_kind_of_teacher_as_the_table_has_it() -> None:
    rows = {names_in(kind)[0]: where for kind, _, where, _ in table(GUIDE, "Kinds of teacher")}
    kinds = {*FAMILIES, *TEACHERS}
    assert rows == {kind: "offline" if teacher_entry(kind, "").offline else "online" for kind in kinds}


def test_the_guide_lists_every_output_format() -> None:
    paragraph = GUIDE.split("Formats: ")[1].split(".\n")[0]
    assert sorted(names_in(paragraph)) == sorted(OUTPUT_FORMATS)


def test_the_guide_lists_every_renamed_key() -> None:
    rows = {(place, *names_in(old), *names_in(new)) for where, old, new in table(GUIDE, "Renamed keys")
            for place in names_in(where)}  # fmt: skip
    configs = {"train": TrainConfig, "family: onnx": OnnxConfig, **{name: load_loss(name).Config for name in LOSSES}}
    expected = {(place, old, new) for place, config in configs.items() for old, new in config.renamed_keys.items()}
    assert rows == expected | {("output_format", old, new) for old, new in RENAMED_FORMATS.items()}


def test_the_readme_lists_every_loss_and_no_other() -> None:
    names = [name for _, cell in table(README, "Losses") for name in names_in(cell)]
    assert sorted(names) == sorted(LOSSES)


def test_the_example_in_python_runs(squares: Path, teacher_file: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"data: {squares}\nimage_size: 64\nstudent: {{weights: {teacher_file}}}\n"
        "train: {epochs: 1, lr: 1.0e-9, workers: 0, loggers: []}\n"
    )
    places = {
        "configs/bccd_yolov8s_to_yolov8n.yaml": config,
        "datasets/bccd.yaml": squares,
        "runs/student": tmp_path / "run",
        "student.onnx": tmp_path / "student.onnx",
        "test": "val",
    }
    code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[0]
    for written, place in places.items():
        assert f'"{written}"' in code
        code = code.replace(f'"{written}"', f'"{place}"')
    exec(code, {})
    assert (tmp_path / "student.onnx").is_file()


def test_no_public_name_is_hidden_by_a_package() -> None:
    """Importing a package sets its name on `kd_vision`."""
    assert not {path.parent.name for path in (ROOT / "kd_vision").glob("*/__init__.py")} & {*kd_vision.__all__}


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
