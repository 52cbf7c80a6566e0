"""The content of `benchmark.json`: everything that a benchmark report shows, as typed values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import AliasChoices, Field, model_validator

from kd_vision.core.files import write_text
from kd_vision.core.latency import Latency
from kd_vision.core.predictions import IGNORED
from kd_vision.core.validation import StrictModel, validate
from kd_vision.evaluation.metrics import Fraction, Metrics
from kd_vision.report.files import read_json_object

BENCHMARK_FILE = "benchmark.json"

Role = Literal["teacher", "plain", "distilled", "control", "other"]
_REFERENCES: tuple[Role, ...] = ("plain", "control")
Corners = tuple[float, float, float, float]
Fact = str | int | float | bool | None


class CurvePoint(StrictModel):
    """AP on the validation split after `step` batches; None where it is not defined."""

    step: int = Field(ge=0)
    ap: Fraction | None = Field(validation_alias=AliasChoices("AP", "ap"), serialization_alias="AP")


class ArmRun(StrictModel):
    """One run of an arm.

    Attributes:
        seed: None for weights that were not trained here.
        metrics: on the split the report is about.
        seconds: wall time of training.
        images_per_second: training speed.
        curve: AP on the validation split during training.
        directory: the run directory, relative to the benchmark directory.
    """

    seed: int | None
    metrics: Metrics
    seconds: float | None = Field(default=None, ge=0)
    images_per_second: float | None = Field(default=None, ge=0)
    curve: tuple[CurvePoint, ...] = ()
    directory: str | None = None


class ErrorKindFacts(StrictModel):
    """Errors of one kind: their number, and by how much AP50 rises where they are mended (a fraction)."""

    count: int = Field(ge=0)
    cost: float = Field(allow_inf_nan=False)


class Arm(StrictModel):
    """One detector of the comparison, trained once per seed.

    Attributes:
        name: short, e.g. "plain"; the head of its column.
        role: its part in comparisons: every student is compared with `plain` and `control` ones.
        description: one sentence on how it was made.
        model: architecture, e.g. "yolov8n".
        parameters: number of parameters; None: a black box.
        gflops: billions of floating point operations for one image of the benchmark's size.
        file_bytes: size of the weights file.
        onnx_latency_ms: latency of the exported file.
        errors: by kind (`evaluation.tide`), of the run whose detections the examples show.
        runs: one per seed.
    """

    name: str = Field(min_length=1)
    role: Role
    description: str
    model: str
    parameters: int | None = Field(default=None, ge=0)
    gflops: float | None = Field(default=None, ge=0)
    file_bytes: int | None = Field(default=None, ge=0)
    onnx_latency_ms: Latency | None = None
    errors: Mapping[str, ErrorKindFacts] = Field(default_factory=dict)
    runs: tuple[ArmRun, ...] = Field(min_length=1)


class GroundTruthBox(StrictModel):
    """A ground-truth box in pixels of the example's image; a crowd box is never counted."""

    box_xyxy: Corners
    label: int = Field(ge=0)
    crowd: bool = False


class DetectedBox(StrictModel):
    """A detection in pixels of the example's image.

    Attributes:
        box_xyxy: corners.
        score: confidence.
        label: class.
        matched_idx: index of the ground-truth box that it matches, -1 (false positive) or -2 (not counted), as in
            `ImageMatches`; None in files of earlier versions.
    """

    box_xyxy: Corners
    score: Fraction
    label: int = Field(ge=0)
    matched_idx: int | None = Field(default=None, ge=IGNORED)


class Example(StrictModel):
    """An image with the detections of each arm.

    Attributes:
        image: JPEG, relative to the benchmark directory.
        file_name: name of the image in the data set.
        ground_truth: its boxes.
        detections: by arm name.
        difference: mistakes of `before` minus mistakes of `after`; positive: the student got better.
    """

    image: str
    file_name: str
    ground_truth: tuple[GroundTruthBox, ...]
    detections: Mapping[str, tuple[DetectedBox, ...]]
    difference: float


class DataFacts(StrictModel):
    """The split that was evaluated."""

    name: str
    split: str
    n_images: int = Field(ge=0)
    classes: tuple[str, ...] = Field(min_length=1)


class Comparison(NamedTuple):
    """A pair of arms whose difference is a gain."""

    after: Arm
    before: Arm


class Bounds(StrictModel):
    """A 95 % interval of a difference of fractions."""

    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)


class ImageCounts(StrictModel):
    """On how many images `after` makes fewer mistakes than `before` (won), more (lost), or as many (equal)."""

    won: int = Field(ge=0)
    lost: int = Field(ge=0)
    equal: int = Field(ge=0)


class Difference(StrictModel):
    """What resampling the images says about a comparison.

    Attributes:
        after, before: arm names.
        seeds: pairs of runs; with two or more the intervals are over images and seeds, with one over images alone.
        draws: of the images.
        overall: by the keys of `metrics.json` (``AP AP50 AP75 APs APm APl``), those that are defined.
        per_class: of the AP of each class that has boxes.
        images: images won and lost, by mistakes averaged over seeds.
    """

    after: str
    before: str
    seeds: int = Field(gt=0)
    draws: int = Field(gt=0)
    overall: Mapping[str, Bounds]
    per_class: Mapping[str, Bounds]
    images: ImageCounts


class BudgetCheck(StrictModel):
    """AP of the plain student after the benchmark's steps, and after more of them, on the same split.

    Attributes:
        split: name of the split, which is not the one reported where there are two.
        seed: of both runs.
        steps, longer_steps: batches of training.
        ap, longer_ap: fractions; None: not defined.
    """

    split: str
    seed: int
    steps: int = Field(gt=0)
    longer_steps: int = Field(gt=0)
    ap: Fraction | None
    longer_ap: Fraction | None


class BenchmarkData(StrictModel):
    """A whole benchmark.

    Attributes:
        title: heading of the report.
        data: the split that was evaluated.
        image_size: side of the network's input in pixels.
        steps: training batches of every student; None: arms differ.
        seeds: of the students.
        arms: in the order of the rows.
        differences: intervals of `comparisons`; empty in files of earlier versions.
        box_counts: ground-truth boxes of the split by size (``all small medium large``), without crowd regions.
        budget: whether training is long enough; None: not checked.
        examples: images for the side-by-side view.
        examples_seed: the runs whose detections the examples show.
        created: date and time (ISO 8601).
        command: repeats the benchmark.
        hardware: facts about the machine.
        versions: of packages.
    """

    title: str
    data: DataFacts
    image_size: int = Field(gt=0)
    steps: int | None = Field(default=None, ge=0)
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...] = Field(min_length=1)
    differences: tuple[Difference, ...] = ()
    box_counts: Mapping[str, int] = Field(default_factory=dict)
    budget: BudgetCheck | None = None
    examples: tuple[Example, ...] = ()
    examples_seed: int | None = None
    created: str
    command: str
    hardware: Mapping[str, Fact] = Field(default_factory=dict)
    versions: Mapping[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> BenchmarkData:
        names = [arm.name for arm in self.arms]
        duplicates = sorted({name for name in names if names.count(name) > 1})
        if duplicates:
            raise ValueError(f"arms: the name {', '.join(duplicates)} is given to more than one arm")
        for arm in self.arms:
            seeds = [run.seed for run in arm.runs]
            if len(seeds) != len(set(seeds)):
                raise ValueError(f"arm {arm.name}: a seed comes twice; give one run per seed")
        for example in self.examples:
            _check_example(example, names, len(self.data.classes))
        return self

    def with_role(self, role: Role) -> tuple[Arm, ...]:
        """Return the arms of a role, in order."""
        return tuple(arm for arm in self.arms if arm.role == role)

    def comparisons(self) -> tuple[Comparison, ...]:
        """Return the pairs whose differences are gains; the first is the headline's, distilled over plain.

        Every student over every plain one and every control; distilled arms come first.
        """
        students = (*self.with_role("distilled"), *self.with_role("other"), *self.with_role("control"))
        return tuple(
            Comparison(after, before)
            for after in students
            for role in _REFERENCES
            for before in self.with_role(role)
            if after.role != role
        )

    def difference(self, pair: Comparison) -> Difference | None:
        """Return the intervals of a comparison; None in files of earlier versions."""
        names = (pair.after.name, pair.before.name)
        return next((one for one in self.differences if (one.after, one.before) == names), None)


def read_benchmark(directory: Path) -> BenchmarkData:
    """Read `benchmark.json` of a benchmark directory.

    Raises:
        RequestError: the file is missing, is not JSON, or has wrong or unknown values.
    """
    path = directory / BENCHMARK_FILE
    return validate(BenchmarkData, read_json_object(path), str(path))


def write_benchmark(directory: Path, data: BenchmarkData) -> Path:
    """Write `benchmark.json` whole or not at all, and return its path."""
    path = directory / BENCHMARK_FILE
    content = data.model_dump(mode="json", by_alias=True)
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path


def _check_example(example: Example, arms: list[str], classes: int) -> None:
    unknown = sorted(set(example.detections) - set(arms))
    if unknown:
        raise ValueError(f"example {example.image}: no arm is named {', '.join(unknown)}")
    detected = [box for boxes in example.detections.values() for box in boxes]
    labels = [box.label for box in example.ground_truth] + [box.label for box in detected]
    label = max(labels, default=0)
    if label >= classes:
        raise ValueError(f"example {example.image}: label {label} is no class; labels go from 0 to {classes - 1}")
    matched = max((box.matched_idx for box in detected if box.matched_idx is not None), default=IGNORED)
    if matched >= len(example.ground_truth):
        boxes = len(example.ground_truth)
        raise ValueError(f"example {example.image}: matched_idx {matched}: there are {boxes} ground-truth boxes")
