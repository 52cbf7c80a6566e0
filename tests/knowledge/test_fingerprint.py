from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kd_vision.core.errors import RequestError
from kd_vision.core.validation import StrictModel
from kd_vision.knowledge.fingerprint import file_sha256, fingerprint


class _Member(StrictModel):
    weights: Path
    weight: float = 1.0


class _Ensemble(StrictModel):
    members: tuple[_Member, ...]
    iou: float = 0.5


def ensemble(folder: Path, names: tuple[str, ...], contents: tuple[bytes, ...], iou: float = 0.5) -> _Ensemble:
    folder.mkdir(exist_ok=True)
    for name, content in zip(names, contents, strict=True):
        (folder / name).write_bytes(content)
    return _Ensemble(members=tuple(_Member(weights=folder / name) for name in names), iou=iou)


def test_places_and_names_change_nothing_contents_and_settings_do(tmp_path: Path) -> None:
    first = fingerprint(ensemble(tmp_path / "a", ("x.pt", "y.pt"), (b"1", b"2")))
    assert fingerprint(ensemble(tmp_path / "b", ("p.pt", "q.pt"), (b"1", b"2"))) == first
    others = [
        fingerprint(ensemble(tmp_path / "c", ("x.pt", "y.pt"), (b"1", b"3"))),
        fingerprint(ensemble(tmp_path / "d", ("x.pt", "y.pt"), (b"2", b"1"))),
        fingerprint(ensemble(tmp_path / "e", ("x.pt", "y.pt"), (b"1", b"2"), iou=0.6)),
    ]
    assert len({first, *others}) == 4


def test_plain_mappings_with_absolute_paths_count_like_models(tmp_path: Path) -> None:
    model = ensemble(tmp_path / "a", ("x.pt", "y.pt"), (b"1", b"2"))
    assert fingerprint(model.model_dump(mode="json")) == fingerprint(model)


def test_a_folder_stands_for_its_files(tmp_path: Path) -> None:
    for name, text in (("one", "x"), ("two", "x"), ("three", "y")):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "w.pt").write_text(text)
    one, two, three = (fingerprint({"run": tmp_path / name}) for name in ("one", "two", "three"))
    assert one == two != three


def test_files_are_hashed_whole(tmp_path: Path) -> None:
    path = tmp_path / "big"
    content = bytes(range(256)) * 9000
    path.write_bytes(content)
    assert file_sha256(path) == hashlib.sha256(content).hexdigest()
    with pytest.raises(RequestError, match=r"gone: cannot be read \(No such file or directory\)"):
        fingerprint({"weights": tmp_path / "gone"})
