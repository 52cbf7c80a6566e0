"""YAML as a person means it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_vision.core.errors import RequestError, suggest
from kd_vision.core.strict_yaml import load_mapping, parse_scalar, resolve_path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-2.5E+2", -250.0),
        ("7", 7),
        ("1.", 1.0),
        (".5", 0.5),
        ("1e", "1e"),
        ("e3", "e3"),
        ("no", False),
    ],
)
def test_scalars(text: str, value: object) -> None:
    found = parse_scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_a_list_at_the_top_and_broken_yaml_are_refused_with_place(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("- 1\n")
    with pytest.raises(RequestError, match="expected keys and values at the top level, found a list"):
        load_mapping(path)
    path.write_text("a: 1\nb: [1, 2\n")
    with pytest.raises(RequestError, match=r"a\.yaml:3: "):
        load_mapping(path)


def test_objects_are_not_built_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(RequestError, match="could not determine a constructor"):
        load_mapping(path)


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDV_SOMEWHERE", "/abc")
    assert resolve_path("${KDV_SOMEWHERE}/d", tmp_path) == Path("/abc/d")
    assert resolve_path("../d", tmp_path) == tmp_path.parent / "d"


def test_suggestions() -> None:
    assert suggest("tv", ["tvmonitor", "car"]) == "; possible: car, tvmonitor"
    assert suggest("epoch", ["epochs", "seed"]) == "; did you mean 'epochs'?"


def test_what_cannot_be_a_key_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\ndata: {{ root }}\n")
    with pytest.raises(RequestError, match=r"a\.yaml:2: a dict cannot be a key; put it in quotes"):
        load_mapping(path)


def test_one_mapping_may_bring_the_keys_of_another(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("base: &base {lr: 0.1, epochs: 3}\ntrain: {<<: *base, epochs: 5}\n")
    assert load_mapping(path)["train"] == {"lr": 0.1, "epochs": 5}
