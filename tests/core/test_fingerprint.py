from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from kd_vision.core.errors import RequestError
from kd_vision.core.fingerprint import file_sha256, fingerprint
from kd_vision.core.validation import StrictModel
from kd_vision.teachers.onnx import OnnxConfig


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


def test_weights_beside_an_onnx_file_count(tmp_path: Path) -> None:
    """`torch.onnx.export` keeps them in a file of their own; a teacher trained anew has the same graph."""

    def saved(folder: Path, value: float) -> str:
        folder.mkdir()
        weights = numpy_helper.from_array(np.full(600, value, np.float32), "w")
        graph = helper.make_graph([], "g", [], [], initializer=[weights])
        onnx.save(helper.make_model(graph), folder / "t.onnx", save_as_external_data=True, location="t.data")
        return fingerprint({"weights": folder / "t.onnx"})

    first = saved(tmp_path / "a", 1.0)
    assert saved(tmp_path / "b", 1.0) == first
    assert saved(tmp_path / "c", 2.0) != first
    assert (tmp_path / "a" / "t.onnx").read_bytes() == (tmp_path / "c" / "t.onnx").read_bytes()


def test_what_changes_no_answer_and_unfinished_files_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "t.onnx").write_bytes(b"torn")
    one, four = (OnnxConfig(weights=tmp_path / "t.onnx", threads=count) for count in (1, 4))
    assert fingerprint(one) == fingerprint(four)
    assert fingerprint(one) != fingerprint(OnnxConfig(weights=tmp_path / "t.onnx", layout="yolox"))
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "shard").write_text("x")
    before = fingerprint(folder)
    (folder / "next.part").write_text("y")
    assert fingerprint(folder) == before
