"""Configs and files: what is built from them, and the line that says what is wrong."""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from torchvision.models.vgg import cfgs, make_layers
from torchvision.ops import FrozenBatchNorm2d

from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import ONE_TO_MANY
from kd_vision.core.validation import validate
from kd_vision.detectors.torchvision import weights as reader
from kd_vision.detectors.torchvision.common import TorchvisionDetector
from kd_vision.detectors.torchvision.config import TorchvisionConfig
from kd_vision.detectors.torchvision.family import build

Make = Callable[[str], TorchvisionDetector]
FCOS = "fcos_resnet18_fpn"
CLASSES = ("car", "bus", "person")


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(RequestError) as caught:
        call()
    (line,) = caught.value.problems
    return line


def refused_config(**content: Any) -> str:
    return refused(lambda: validate(TorchvisionConfig, content, "run.yaml"))


def plain(detector: TorchvisionDetector, path: Path) -> Path:
    """Write what `torch.save(model.state_dict())` writes."""
    torch.save(detector.net.state_dict(), path)
    return path


def test_wrong_configs_are_told_in_one_line() -> None:
    assert refused_config(model="fcos_resnet19_fpn").startswith(
        "run.yaml: model: unknown model 'fcos_resnet19_fpn'; did you mean 'fcos_resnet1"
    )
    assert refused_config(model=FCOS, input_channels=1) == (
        "run.yaml: input_channels: torchvision's models take 3 channels (RGB), given 1; leave it out"
    )
    assert refused_config(weights="a.pt", pretrained="coco") == (
        "run.yaml: pretrained is coco, but 'weights' are given too; leave one of them out"
    )
    assert refused_config(pretrained="backbone") == (
        "run.yaml: pretrained is backbone, but no model is named; give 'model', e.g. retinanet_resnet50_fpn"
    )
    assert refused_config(model=FCOS, pretrained="coco").startswith(
        "run.yaml: pretrained: coco: there are no COCO weights of fcos_resnet18_fpn; possible: retinanet_resnet50_fpn, "
    )
    assert refused_config(model="ssdlite320_mobilenet_v3_large", pretrained="backbone") == (
        "run.yaml: pretrained: backbone: the classifier of ssdlite320_mobilenet_v3_large has a wider end, which does "
        "not fit; use coco or none"
    )


def test_a_request_without_enough_to_build_is_told_what_is_missing() -> None:
    assert refused(lambda: build(TorchvisionConfig(), None, "teacher")) == (
        "teacher: give 'model' (e.g. retinanet_resnet50_fpn), 'weights' (a .pt file), or both"
    )
    assert refused(lambda: build(TorchvisionConfig(model=FCOS), None, "teacher")) == (
        "teacher: a model without weights has no class names; give 'weights', or pretrained: coco"
    )
    assert refused(lambda: build(TorchvisionConfig(model=FCOS, class_names=("a",)), CLASSES, "student")) == (
        "student.class_names: a student has the classes of the data; leave it out"
    )
    assert refused(lambda: build(TorchvisionConfig(model=FCOS, proposals=10), CLASSES, "student")) == (
        "student.proposals: fcos_resnet18_fpn has no second stage that takes proposals; leave it out"
    )


def test_wrong_files_are_told_in_one_line(make: Make, tmp_path: Path) -> None:
    def opened(path: Path, **settings: Any) -> str:
        return refused(lambda: build(TorchvisionConfig(weights=path, **settings), None, "teacher"))

    path = tmp_path / "teacher.pt"
    assert opened(path) == f"teacher.weights: {path} does not exist; give a .pt file"
    path.write_bytes(b"no model")
    assert opened(path).startswith(f"teacher.weights: {path} cannot be read as a .pt file (")
    torch.save({"epoch": 3}, path)
    assert opened(path) == f"teacher.weights: {path} holds no state dict of a torchvision model"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "kd_vision": {"name": "yolo11n"}}, path)
    assert opened(path) == f"teacher.weights: {path} is of another family; give its 'family' too"
    torch.save({"model": {"a": torch.zeros(1)}, "args": Namespace(lr=0.1)}, path)
    assert opened(path, model=FCOS) == (
        f"teacher.weights: {path} needs classes outside the allow-list; loading it would run its code; set trust: true "
        f"if you know who made it"
    )
    plain(make(FCOS), path)
    assert opened(path) == (
        f"teacher.model: is missing; {path} is a plain state dict, so name the model that it fits, e.g. "
        f"retinanet_resnet50_fpn"
    )
    assert opened(path, model=FCOS) == (
        f"teacher.class_names: is missing; {path} is a plain state dict, which names none of its 3 classes; list them "
        f"in label order, without background"
    )
    assert opened(path, model=FCOS, class_names=("a", "b")) == (
        f"teacher.class_names: 2 names, but the head of {path} has 3 classes and background"
    )
    make(FCOS).save(path, {})
    assert opened(path, class_names=CLASSES) == f"teacher.class_names: {path} names its own classes; leave it out"
    line = opened(path, model="fcos_resnet34_fpn")
    assert line.startswith("teacher.weights: only ")
    assert line.endswith(f" tensors of {path} fit the model; give weights of the same architecture")


def test_a_plain_state_dict_becomes_a_teacher_with_names(make: Make, images: torch.Tensor, tmp_path: Path) -> None:
    detector = make(FCOS)
    names = ("one", "two", "three")
    config = TorchvisionConfig(model=FCOS, weights=plain(detector, tmp_path / "net.pth"), class_names=names)
    teacher = build(config, None, "teacher").eval()
    assert teacher.spec.classes == names
    with torch.no_grad():
        grids = [each.eval()(images, signals=frozenset({"grid"})).grids[ONE_TO_MANY] for each in (detector, teacher)]
    assert torch.equal(grids[0].logits, grids[1].logits)


def test_the_file_of_a_training_script_opens_with_consent(make: Make, tmp_path: Path) -> None:
    detector = make(FCOS)
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": detector.net.state_dict(), "args": Namespace(lr=0.1)}, path)
    config = TorchvisionConfig(model=FCOS, weights=path, class_names=CLASSES, trust=True)
    teacher = build(config, None, "teacher")
    assert torch.equal(teacher.net.backbone.body.conv1.weight, detector.net.backbone.body.conv1.weight)


@pytest.mark.parametrize("name", [FCOS, "fasterrcnn_resnet18_fpn", "ssdlite320_mobilenet_v3_large"])
def test_columns_of_coco_without_a_class_are_left_out(name: str, images: torch.Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide = build(TorchvisionConfig(model=name, proposals=20 if "faster" in name else None), tuple("x" * 90), "student")
    path = plain(wide.eval(), tmp_path / "coco.pth")
    slim = build(
        TorchvisionConfig(model=name, weights=path, proposals=20 if "faster" in name else None), None, "teacher"
    ).eval()
    categories = torchvision.models.get_model_weights("fcos_resnet50_fpn").COCO_V1.meta["categories"]
    assert len(slim.spec.classes) == 80
    assert slim.spec.classes[11] == "stop sign"
    real = torch.tensor([place - 1 for place, each in enumerate(categories) if place and each != "N/A"])
    with torch.no_grad():
        ours, theirs = (each(images, signals=frozenset({"regions"})).raw_predictions() for each in (slim, wide))
    assert ours is not None
    assert theirs is not None
    if name == "ssdlite320_mobilenet_v3_large":
        assert torch.equal(ours.boxes_xyxy, theirs.boxes_xyxy)
    torch.testing.assert_close(ours.logits, theirs.logits[..., real])
    assert (ours.background is None) == (theirs.background is None)
    if ours.background is not None and theirs.background is not None:
        torch.testing.assert_close(ours.background, theirs.background)


def test_a_student_with_other_classes_keeps_all_but_its_head(make: Make, tmp_path: Path) -> None:
    source = make(FCOS)
    source.save(tmp_path / "teacher.pt", {})
    student = build(TorchvisionConfig(weights=tmp_path / "teacher.pt"), ("a", "b"), "student")
    assert student.spec.classes == ("a", "b")
    fresh = student.net.head.classification_head.cls_logits.weight
    assert fresh.shape[0] == 3
    ours, theirs = student.net.state_dict(), source.net.state_dict()
    different = [key for key in ours if ours[key].shape != theirs[key].shape]
    assert different == [f"head.classification_head.cls_logits.{kind}" for kind in ("weight", "bias")]
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if key not in different)


def test_a_file_from_which_little_fits_is_refused_for_a_student(make: Make, tmp_path: Path) -> None:
    make("ssdlite320_mobilenet_v3_large").save(tmp_path / "other.pt", {})
    tensors = sum("num_batches_tracked" not in name for name in make(FCOS).net.state_dict())
    config = TorchvisionConfig(model=FCOS, weights=tmp_path / "other.pt")
    assert refused(lambda: build(config, CLASSES, "student")) == (
        f"student.weights: only 0 of {tensors} tensors of {tmp_path / 'other.pt'} fit the model; give weights of the "
        f"same architecture"
    )


def test_norms_stay_frozen_where_the_file_has_frozen_ones(make: Make, images: torch.Tensor, tmp_path: Path) -> None:
    source = make(FCOS).eval()
    state = {key: value for key, value in source.net.state_dict().items() if "num_batches_tracked" not in key}
    torch.save(state, tmp_path / "frozen.pth")
    config = TorchvisionConfig(model=FCOS, weights=tmp_path / "frozen.pth", class_names=CLASSES)
    teacher = build(config, None, "teacher")
    assert isinstance(teacher.net.backbone.body.bn1, FrozenBatchNorm2d)
    teacher.save(tmp_path / "again.pt", {})
    again = build(TorchvisionConfig(weights=tmp_path / "again.pt"), CLASSES, "student")
    assert isinstance(again.net.backbone.body.bn1, FrozenBatchNorm2d)
    for other in (teacher, again):
        torch.testing.assert_close(other.detect(images)[0].scores, source.detect(images)[0].scores)


def test_old_names_of_the_package_are_understood(make: Make, tmp_path: Path) -> None:
    source = make("retinanet_resnet18_fpn")
    old = {}
    for key, value in source.net.state_dict().items():
        head, found, rest = key.partition("_head.conv.")
        number, _, kind = rest.rpartition(".0.")
        old[f"{head}{found}{2 * int(number)}.{kind}" if found else key] = value
    assert "head.regression_head.conv.6.bias" in old
    torch.save(old, tmp_path / "old.pth")
    config = TorchvisionConfig(model="retinanet_resnet18_fpn", weights=tmp_path / "old.pth", class_names=CLASSES)
    teacher = build(config, None, "teacher")
    assert all(torch.equal(value, source.net.state_dict()[key]) for key, value in teacher.net.state_dict().items())


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: Any, *args: Any, **settings: Any) -> Any:
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", offline)
    config = TorchvisionConfig(model=FCOS, pretrained="backbone")
    assert refused(lambda: build(config, CLASSES, "student")) == (
        "student.pretrained: the ImageNet weights of resnet18 cannot be downloaded (<urlopen error no route to host>); "
        "fetch https://download.pytorch.org/models/resnet18-f37072fd.pth yourself and give the file as 'weights', or "
        "use pretrained: none"
    )
    coco = TorchvisionConfig(model="ssd300_vgg16", pretrained="coco")
    assert refused(lambda: build(coco, None, "teacher")).startswith(
        "teacher.pretrained: the COCO weights of ssd300_vgg16 cannot be downloaded ("
    )


def test_nothing_is_downloaded_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_download", lambda *args: pytest.fail("something was downloaded"))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *args: pytest.fail("something was downloaded"))
    for name in ("fcos_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_fpn", "retinanet_resnet18_fpn_v2"):
        assert build(TorchvisionConfig(model=name), CLASSES, "student").spec.classes == CLASSES
    with pytest.raises(pytest.fail.Exception, match="something was downloaded"):  # the guard above is one
        build(TorchvisionConfig(model=FCOS, pretrained="backbone"), CLASSES, "student")


@pytest.mark.parametrize(
    ("model", "backbone"),
    [(FCOS, "resnet18"), ("fasterrcnn_mobilenet_v3_large_320_fpn", "mobilenet_v3_large")],
)
def test_a_pretrained_backbone_is_the_classifiers(model: str, backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(7)
    classifier = torchvision.models.get_model(backbone, weights=None).eval()
    monkeypatch.setattr(reader, "_download", lambda *args: classifier.state_dict())
    student = build(TorchvisionConfig(model=model, pretrained="backbone"), CLASSES, "student")
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        deepest = list(student.net.backbone.body(pixels).values())[-1]
        if backbone == "resnet18":
            for layer in list(classifier.children())[:-2]:
                pixels = layer(pixels)
        else:
            for norm in classifier.modules():
                if isinstance(norm, torch.nn.BatchNorm2d):
                    norm.eps = 1e-5  # the family's detectors use another one than its classifier
            pixels = classifier.features(pixels)
    torch.testing.assert_close(deepest, pixels, rtol=1e-4, atol=1e-5)
    kinds = {type(each) for each in student.net.backbone.body.modules()}
    assert FrozenBatchNorm2d in kinds
    assert torch.nn.BatchNorm2d not in kinds


def test_the_pretrained_layers_of_ssd300_find_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = make_layers(cfgs["D"])
    state = {f"features.{key}": value for key, value in layers.state_dict().items()}
    monkeypatch.setattr(reader, "_download", lambda *args: state)
    student = build(TorchvisionConfig(model="ssd300_vgg16", pretrained="backbone"), CLASSES, "student")
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found = student.net.backbone.extra[0][:7](student.net.backbone.features(pixels))
        layers[16].ceil_mode = True
        torch.testing.assert_close(found, layers[:30](pixels))


def test_only_plain_values_and_tensors_are_written(make: Make, tmp_path: Path) -> None:
    make(FCOS).save(tmp_path / "student.pt", {"run": "night", "family": "another"})
    content = torch.load(tmp_path / "student.pt", weights_only=True)
    assert set(content) == {"state_dict", "kd_vision"}
    assert content["kd_vision"] == {
        "run": "night",
        "family": "torchvision",
        "model": FCOS,
        "classes": list(CLASSES),
        "frozen_norms": False,
        "norm_epsilon": 1e-5,
        "proposals": None,
    }
    assert pickle.loads(pickle.dumps(make(FCOS).architecture())) == {
        key: value for key, value in content["kd_vision"].items() if key not in ("run", "family")
    }
