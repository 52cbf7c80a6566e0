from __future__ import annotations

from pathlib import Path

import pytest

from kd_vision.core.errors import RequestError
from kd_vision.data.descriptor import UnlabelledSource, load_descriptor

DATASETS = Path(__file__).parents[2] / "datasets"


def write(folder: Path, text: str) -> Path:
    path = folder / "data.yaml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file_and_variables_are_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELSEWHERE", "/other/place")
    path = write(
        tmp_path,
        "format: coco\nroot: sub\nunlabelled: ${ELSEWHERE}/more\n"
        "splits:\n  train: {images: images, annotations: ~/train.json}\n",
    )
    descriptor = load_descriptor(path)
    assert descriptor.root == tmp_path / "sub"
    assert descriptor.splits["train"].images == str(tmp_path / "sub" / "images")
    assert descriptor.splits["train"].annotations == str(Path("~/train.json").expanduser())
    assert descriptor.unlabelled == UnlabelledSource(images="/other/place/more")


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "format: cocoo\nrot: here\nsplits: {train: {image: a}}\n")
    with pytest.raises(RequestError) as caught:
        load_descriptor(path)
    text = "\n".join(caught.value.problems)
    assert "format: unknown format 'cocoo'; did you mean 'coco'?" in text
    assert "rot: unknown key; did you mean 'root'?" in text
    assert "splits.train.images: is missing" in text
    assert "splits.train.image: unknown key" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format: coco\n", "names neither splits nor an unlabelled folder"),
        (
            "format: yolo\nsplits: {a: {images: i}}\n",
            "format yolo needs classes: its files hold only numbers",
        ),
        ("format: coco\nsplits: {a: {images: i}}\n", "splits.a needs annotations: a JSON file"),
        ("format: voc\nsplits: {a: {images: i}}\n", "splits.a needs annotations: a folder of XML files"),
        ("format: coco\nunlabelled: u\nclasses: [a, b, a]\n", "classes must be different names; repeated: a"),
        ("format: coco\nunlabelled: u\nsubset: true\n", "subset: true needs classes: the names to keep"),
    ],
)
def test_inconsistent_descriptor_says_what_would_be_right(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load_descriptor(write(tmp_path, text))


def test_unset_variable_is_named_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "format: coco\nroot: ${KDV_NOT_THERE}/x\nsplits:\n  a: {images: i, annotations: j}\n",
    )
    with pytest.raises(RequestError) as caught:
        load_descriptor(path)
    assert len(caught.value.problems) == 1
    assert "the variable KDV_NOT_THERE is not set" in caught.value.problems[0]


@pytest.mark.parametrize("path", sorted(DATASETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_descriptor_we_ship_says_where_it_comes_from(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDV_DATA", "/data")
    descriptor = load_descriptor(path)
    assert descriptor.source
    assert descriptor.licence
    assert "train" in descriptor.splits
