"""Files of weights: what is read of them without running their code, and what is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from kd_vision.core.errors import RequestError
from kd_vision.detectors import family_of
from kd_vision.detectors.checkpoints import Opaque, peek, read_note, read_weights, recorded_input_size, transfer
from kd_vision.detectors.ultralytics.config import UltralyticsConfig, head_kind


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.mark,)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(RequestError) as caught:
        call()
    (line,) = caught.value.problems
    return line


def test_a_file_is_peeked_into_without_running_its_code(tmp_path: Path) -> None:
    path, mark = tmp_path / "evil.pt", tmp_path / "it_ran"
    note = {"family": "torchvision", "classes": ["a", "b"], "size": 96, "share": 0.5, "nothing": None}
    torch.save({"kd_vision": note, "extra": Payload(mark), "net": nn.Conv2d(3, 4, 1), "w": torch.ones(2)}, path)
    content = peek(path)
    assert content["kd_vision"] == note
    assert isinstance(content["net"], Opaque)
    assert content["net"].attributes["kernel_size"] == (1, 1)
    assert isinstance(content["extra"], Opaque)
    assert read_note(path) == note
    assert family_of(path) == "torchvision"
    assert not mark.exists()
    assert refused(lambda: read_weights(path, False, "teacher")) == (
        f"teacher.weights: {path} needs classes outside the allow-list; loading it would run its code; set trust: true "
        f"if you know who made it"
    )
    assert not mark.exists()


def test_files_without_a_note_are_of_the_default_family(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    for content in ({"a": torch.zeros(1)}, [1, 2], {"kd_vision": "text"}, {"kd_vision": {"family": "gone"}}):
        torch.save(content, path)
        assert family_of(path) == "ultralytics"
    path.write_bytes(b"no archive")
    assert peek(path) == {}
    assert family_of(path) == family_of(tmp_path / "none.pt") == "ultralytics"


def test_the_head_of_a_published_file_is_in_its_yaml(shared: Path, tmp_path: Path) -> None:
    published = shared / "weights" / "yolov8s_coco.pt"
    renamed = tmp_path / "rtdetr-l.pt"  # the name of a file says nothing
    renamed.symlink_to(published)
    assert head_kind(UltralyticsConfig(weights=renamed)) == "dense_bins"


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("yolov5n", "dense_bins"),
        ("yolov8n-p2", "dense_bins"),
        ("yolov9t", "dense_bins"),
        ("yolov10n", "dense_bins"),
        ("yolo26s-p2", "dense"),
        ("rtdetr-l", "queries"),
        ("yolov8n-rtdetr", "queries"),
        ("yolo26n.yaml", "dense"),
        ("none.yaml", "dense_bins"),
    ],
)
def test_the_head_of_a_model_is_in_the_packages_yaml(model: str, kind: str) -> None:
    assert head_kind(UltralyticsConfig(model=model)) == kind


def test_tensors_are_found_where_training_scripts_put_them(tmp_path: Path) -> None:
    path, state = tmp_path / "file.pt", {"a": torch.ones(2)}
    for content in (state, {"state_dict": state}, {"model": state, "epoch": 3}):
        torch.save(content, path)
        assert list(read_weights(path, False, "student").state) == ["a"]
    torch.save({"state_dict": state, "train_args": {"imgsz": 320}}, path)
    assert read_weights(path, False, "student").trained_size == 320
    torch.save({"epoch": 3}, path)
    checkpoint = read_weights(path, False, "student")
    assert (checkpoint.state, checkpoint.model, checkpoint.note) == ({}, None, {})


@pytest.mark.parametrize(("suffix", "family"), [(".onnx", "onnx"), (".json", "predictions")])
def test_a_file_of_another_kind_is_named_with_its_family(suffix: str, family: str, tmp_path: Path) -> None:
    path = tmp_path / f"teacher{suffix}"
    path.write_text("{}")
    assert refused(lambda: read_weights(path, False, "student")) == (
        f"student.weights: {path} is not a .pt file; use it as a teacher with 'family: {family}'"
    )


def test_half_of_the_tensors_start_a_student_and_all_a_teacher() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))  # 8 tensors and a counter
    state = {name: torch.full_like(value, 2) for name, value in net.state_dict().items()}
    half = {name: value for name, value in state.items() if not name.startswith("2.") and "running" not in name}
    assert sum("num_batches" not in name for name in half) == 4
    transfer(half, net, "x.pt", whole=False, where="student")
    assert all(bool((net.state_dict()[name] == 2).all()) for name in half)
    text = "weights: only 4 of 8 tensors of x.pt fit the model; give weights of the same architecture"
    assert refused(lambda: transfer(half, net, "x.pt", whole=True, where="teacher")) == f"teacher.{text}"
    third = {name: value for name, value in half.items() if name != "0.bias"}
    assert "only 3 of 8" in refused(lambda: transfer(third, net, "x.pt", whole=False, where="student"))
    transfer({name: v for name, v in state.items() if "num_batches" not in name}, net, "x.pt", True, "teacher")


def test_recorded_sizes() -> None:
    assert [recorded_input_size(value) for value in (640, "320", None, [640, 480], "large", -1)] == [
        640, 320, None, None, None, None,
    ]  # fmt: skip
