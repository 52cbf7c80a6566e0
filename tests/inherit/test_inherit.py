"""A student that starts as a small copy of its teacher: channels, slices, closed-form fit."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kd_vision.core.errors import RequestError
from kd_vision.detectors import family_module
from kd_vision.detectors.base import Detector
from kd_vision.detectors.inherit_config import InheritConfig
from kd_vision.detectors.torchvision.config import TorchvisionConfig
from kd_vision.detectors.ultralytics.config import UltralyticsConfig
from kd_vision.inherit.channels import channel_graph
from kd_vision.inherit.fit import _solve
from kd_vision.inherit.layers import match_layers
from kd_vision.inherit.start import Inheritance, inherit_weights

CLASSES = ("red", "blue")


def build(name: str, seed: int = 0, classes: tuple[str, ...] = CLASSES, channels: int = 3) -> Detector:
    """Build a detector whose BatchNorm has statistics and scales of its own."""
    torch.manual_seed(seed)
    detector: Detector
    if "_" in name:
        detector = family_module("torchvision", "test").build(TorchvisionConfig(model=name), classes, "test")
    else:
        config = UltralyticsConfig(model=name, input_channels=channels)  # type: ignore[arg-type]
        detector = family_module("ultralytics", "test").build(config, classes, "test")
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return detector.eval()


def pictures(count: int = 4, channels: int = 3, side: int = 96) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(1))


def start(student: Detector, teacher: Detector, images: Tensor | None = None, **settings: object) -> Inheritance:
    given = InheritConfig.model_validate({"from": "big.pt", **settings})
    return inherit_weights(student, teacher, given, pictures() if images is None else images, "pair.yaml: inherit")


def raw(detector: Detector, images: Tensor) -> list[Tensor]:
    """Return the raw outputs of a detector as a flat list."""
    found: list[Tensor] = []

    def gather(value: object) -> None:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, dict):
            for inner in value.values():
                gather(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                gather(inner)

    with torch.no_grad():
        gather(detector.raw_outputs(images))
    return found


EQUAL = ["yolov8n", "yolo11n", "yolo12n", "yolo26n", "retinanet_resnet18_fpn", "fasterrcnn_resnet18_fpn"]


@pytest.mark.parametrize("name", EQUAL)
@pytest.mark.parametrize("fit", [False, True])
def test_a_student_of_equal_shape_is_its_teacher(name: str, fit: bool) -> None:
    student, teacher = build(name, seed=1), build(name, seed=2)
    result = start(student, teacher, fit=fit)
    assert result.weights.share == 1.0
    assert not result.weights.fresh
    for mine, theirs in zip(raw(student, pictures(2)), raw(teacher, pictures(2)), strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(mine / scale, theirs / scale, rtol=0, atol=2e-3 if fit else 0.0)


PAIRS = [
    ("yolov8n", "yolov8s", 1.0),
    ("yolov8n", "yolov8m", 1.0),
    ("yolo11n", "yolo11s", 1.0),
    ("yolo11n", "yolo11m", 0.9),
    ("yolo12n", "yolo12s", 1.0),
    ("yolo26n", "yolo26s", 1.0),
    ("yolov8n-p2", "yolov8s", 0.9),
    ("yolov5n", "yolov5s", 1.0),
    ("fcos_resnet18_fpn", "fcos_resnet34_fpn", 1.0),
]


@pytest.mark.parametrize(("small", "large", "least"), PAIRS)
def test_every_inherited_tensor_is_a_slice_of_the_teachers(small: str, large: str, least: float) -> None:
    """Checked without the matching: each number of a student's tensor occurs in the teacher's tensor."""
    student, teacher = build(small, seed=1), build(large, seed=2)
    result = start(student, teacher, fit=False)
    assert result.weights.share >= least - 1e-9
    names = match_layers(student, teacher, channel_graph(student), channel_graph(teacher))
    theirs = teacher.state_dict()
    unchecked = {*result.weights.fresh, *result.weights.partial}
    checked = 0
    for name, mine in student.state_dict().items():
        module, key = name.rsplit(".", 1)
        other = theirs.get(f"{names.get(module, module)}.{key}")
        if name in unchecked or other is None or mine.numel() < 2:
            continue
        assert np.isin(mine.numpy(), np.append(other.numpy(), 0.0)).all(), name
        checked += mine.numel()
    assert checked > 0.5 * sum(one.numel() for one in student.state_dict().values())


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "fcos_resnet18_fpn"])
def test_evaluation_and_training_mode_agree_after_the_fit(name: str) -> None:
    large = {"yolov8n": "yolov8s", "yolo11n": "yolo11s", "fcos_resnet18_fpn": "fcos_resnet34_fpn"}[name]
    student = build(name, seed=1)
    start(student, build(large, seed=2))
    in_evaluation = raw(student.eval(), pictures())
    in_training = raw(copy.deepcopy(student).train(), pictures())
    for first, second in zip(in_evaluation, in_training, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3 * float(first.abs().max()))


def test_the_fit_brings_the_student_nearer_to_its_teacher_than_slices_alone() -> None:
    teacher, other = build("yolov8s", seed=2), pictures(4)
    distances = {}
    for fit in (False, True):
        student = build("yolov8n", seed=1)
        start(student, teacher, pictures(8), fit=fit)
        pairs = zip(raw(student, other)[:2], raw(teacher, other)[:2], strict=True)
        distances[fit] = sum(float((mine - theirs).pow(2).mean()) for mine, theirs in pairs)
    assert distances[True] < 0.7 * distances[False]


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize("bias", [False, True])
def test_the_solution_is_that_of_least_squares(groups: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(6, 6, 3, groups=groups, bias=bias)
    nn.init.zeros_(conv.weight)
    patches = torch.randn(400, 6, 3, 3, generator=generator, dtype=torch.float64) + 0.5
    truth = torch.randn(6, 6 // groups, 3, 3, generator=generator, dtype=torch.float64)
    shift = torch.randn(6, generator=generator, dtype=torch.float64)
    rows = patches.reshape(400, groups, -1)
    target = torch.einsum("rgd,god->rgo", rows, truth.reshape(groups, 6 // groups, -1)).reshape(400, 6) + shift
    with torch.no_grad():
        intercept = _solve(conv, patches, target.float(), centred=True)
    torch.testing.assert_close(conv.weight.double(), truth, rtol=0, atol=0.02 * float(truth.abs().max()))
    found = intercept if not bias else conv.bias.double()  # type: ignore[union-attr]
    design = np.concatenate([patches.reshape(400, -1).numpy(), np.ones((400, 1))], axis=1)
    if groups == 1:  # an independent solver
        solved = np.linalg.lstsq(design, target.numpy(), rcond=None)[0]
        np.testing.assert_allclose(found.detach().numpy(), solved[-1], atol=0.1)
    torch.testing.assert_close(found, shift, rtol=0, atol=0.1)


def test_channels_that_are_added_stay_together() -> None:
    graph = channel_graph(build("yolov8n"))
    # the second half of cv1 is the trunk to which the bottleneck's output is added
    trunk = graph.outputs("net.model.2.cv1.conv")[16:]
    np.testing.assert_array_equal(trunk, graph.outputs("net.model.2.m.0.cv2.conv"))
    np.testing.assert_array_equal(graph.inputs("net.model.2.cv2.conv")[32:], trunk)
    assert not set(graph.outputs("net.model.2.cv1.conv")[:16]) & set(trunk)


def test_a_head_of_attention_is_inherited_whole() -> None:
    student, teacher = channel_graph(build("yolo11n")), channel_graph(build("yolo11s"))
    name = "net.model.10.m.0.attn.qkv.conv"
    for graph, heads in ((student, 2), (teacher, 4)):
        classes = graph.outputs(name)
        marks = [graph.heads[one] for one in classes.tolist()]
        assert len(set(marks)) == heads
        assert marks == [marks[128 * head] for head in range(heads) for _ in range(128)]
        # within a head query and key channels meet one by one
        np.testing.assert_array_equal(classes[:32], classes[32:64])


def test_the_strongest_channels_are_kept() -> None:
    teacher, student = build("yolov8s", seed=2), build("yolov8n", seed=1)
    norm = teacher.get_submodule("net.model.0.bn")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(32).float() + 1)
    start(student, teacher, fit=False, strength="batchnorm")
    kept = student.get_submodule("net.model.0.bn").weight
    assert kept.tolist() == [float(value) for value in range(17, 33)]


def test_a_gray_student_adds_up_the_three_colours() -> None:
    student, teacher = build("yolov8n", 1, channels=1), build("yolov8n", 2)
    start(student, teacher, pictures(channels=1), fit=False)
    gray = pictures(2, channels=1)
    mine, theirs = raw(student, gray)[0], raw(teacher, gray.expand(-1, 3, -1, -1))[0]
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_a_fourth_channel_starts_without_weight() -> None:
    student, teacher = build("yolov8n", 1, channels=4), build("yolov8n", 2)
    start(student, teacher, pictures(channels=4), fit=False)
    images = pictures(2, channels=4)
    torch.testing.assert_close(raw(student, images)[0], raw(teacher, images[:, :3])[0], rtol=1e-4, atol=1e-4)


def test_scores_of_other_classes_stay_fresh_and_boxes_are_inherited() -> None:
    student, teacher = build("yolov8n", 1, classes=("cat", "dog")), build("yolov8s", 2)
    before = student.get_submodule("net.model.22.cv3.0.2").weight.clone()
    result = start(student, teacher, fit=False)
    torch.testing.assert_close(student.get_submodule("net.model.22.cv3.0.2").weight, before)
    assert all("cv3" in name for name in result.weights.fresh)


@pytest.mark.parametrize(
    ("small", "large", "settings", "images", "text"),
    [
        (
            "yolov8n",
            "fcos_resnet18_fpn",
            {},
            pictures(),
            "pair.yaml: inherit: fcos_resnet18_fpn is of the family torchvision, yolov8n of ultralytics; weights can "
            "be inherited within one family only",
        ),
        (
            "yolov8n",
            "yolov8s",
            {},
            torch.zeros(0, 3, 96, 96),
            "pair.yaml: inherit: needs images, and there are none; give training images, or a folder 'unlabelled'",
        ),
        (
            "yolov8n",
            "yolov8s",
            {},
            torch.full((3, 3, 96, 96), 0.4),
            "pair.yaml: inherit: every image is of one colour; give images like those of the camera",
        ),
    ],
)
def test_what_cannot_be_inherited_is_refused(
    small: str, large: str, settings: dict[str, object], images: Tensor, text: str
) -> None:
    with pytest.raises(RequestError) as error:
        start(build(small), build(large), images, **settings)
    assert str(error.value) == text


def test_another_topology_is_refused_with_the_share() -> None:
    with pytest.raises(RequestError, match=r"only \d+ % of yolov8n has .* in yolov5s, below least_share 0.9"):
        start(build("yolov8n"), build("yolov5s"), least_share=0.9)
