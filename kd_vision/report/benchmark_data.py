"""The content of `benchmark.json`: everything a benchmark report says, as typed values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import AliasChoices, Field, model_validator

from kd_vision.core.files import write_text
from kd_vision.core.validation import StrictModel, validate
from kd_vision.evaluation.metrics import Fraction, Metrics
from kd_vision.report.files import read_json_object

BENCHMARK_FILE = "benchmark.json"

Role = Literal["teacher", "plain", "distilled", "control", "other"]
Corners = tuple[float, float, float, float]
Fact = str | int | float | bool | None


class CurvePoint(StrictModel):
    """AP on the validation split after `step` batches; None where it is not defined."""

    step: int = Field(ge=0)
    ap: Fraction | None = Field(validation_alias=AliasChoices("AP", "ap"), serialization_alias="AP")


class ArmRun(StrictModel):
    """One run of an arm.

    Attributes:
        seed: None for weights that were given and not trained here.
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


class Latency(StrictModel):
    """Time of one image through the ONNX file, in milliseconds, over `runs` runs."""

    median: float = Field(gt=0)
    p90: float = Field(gt=0)
    runs: int = Field(gt=0)
    threads: int = Field(gt=0)


class Arm(StrictModel):
    """One way to get a detector.

    Attributes:
        name: short, e.g. "plain"; the head of its column.
        role: what it is compared as; gains are of `distilled` arms over `plain` and `other` ones.
        description: one sentence on how it was made.
        model: architecture, e.g. "yolov8n".
        parameters: number of parameters; None: a black box.
        gflops: billions of floating point operations for one image of the benchmark's size.
        file_bytes: size of the weights file.
        onnx_latency_ms: latency of the exported file.
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
    runs: tuple[ArmRun, ...] = Field(min_length=1)


class TruthBox(StrictModel):
    """A ground-truth box in pixels of the example's image; a crowd box counts for nothing."""

    box_xyxy: Corners
    label: int = Field(ge=0)
    crowd: bool = False


class FoundBox(StrictModel):
    """A detection in pixels of the example's image."""

    box_xyxy: Corners
    score: Fraction
    label: int = Field(ge=0)


class Example(StrictModel):
    """An image with what each arm found on it.

    Attributes:
        image: JPEG, relative to the benchmark directory.
        file_name: name of the image in the data set.
        ground_truth: its boxes.
        detections: by arm name.
        difference: mistakes of `before` less mistakes of `after`; positive: the student got better.
    """

    image: str
    file_name: str
    ground_truth: tuple[TruthBox, ...]
    detections: Mapping[str, tuple[FoundBox, ...]]
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


class BenchmarkData(StrictModel):
    """A whole benchmark.

    Attributes:
        title: head of the report.
        data: the split that was evaluated.
        image_size: side of the network's input in pixels.
        steps: batches that every student saw; None: not all saw as many.
        seeds: of the students.
        arms: in the order of the columns.
        examples: images for the side-by-side view.
        examples_seed: the runs whose detections the examples show.
        created: date and time (ISO 8601).
        command: makes the benchmark again.
        hardware: facts about the machine.
        versions: of packages.
    """

    title: str
    data: DataFacts
    image_size: int = Field(gt=0)
    steps: int | None = Field(default=None, ge=0)
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...] = Field(min_length=1)
    examples: tuple[Example, ...] = ()
    examples_seed: int | None = None
    created: str
    command: str
    hardware: Mapping[str, Fact] = Field(default_factory=dict)
    versions: Mapping[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> BenchmarkData:
        names = [arm.name for arm in self.arms]
        doubles = sorted({name for name in names if names.count(name) > 1})
        if doubles:
            raise ValueError(f"arms: the name {', '.join(doubles)} is given to more than one arm")
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
        """Return the pairs that gains are about; the first is the headline's.

        Every distilled arm over every plain one, then the first distilled arm over the others.
        """
        distilled = self.with_role("distilled")
        over_plain = [Comparison(after, before) for after in distilled for before in self.with_role("plain")]
        others = (*self.with_role("control"), *self.with_role("other"))
        over_other = [Comparison(after, before) for after in distilled[:1] for before in others]
        return (*over_plain, *over_other)


def read_benchmark(directory: Path) -> BenchmarkData:
    """Read `benchmark.json` of a benchmark directory.

    Raises:
        RequestError: the file is missing, is not JSON, or says something it should not.
    """
    path = directory / BENCHMARK_FILE
    return validate(BenchmarkData, read_json_object(path), str(path))


def write_benchmark(directory: Path, data: BenchmarkData) -> Path:
    """Write `benchmark.json` so that it is there whole or not at all, and return its path."""
    path = directory / BENCHMARK_FILE
    content = data.model_dump(mode="json", by_alias=True)
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path


def _check_example(example: Example, arms: list[str], classes: int) -> None:
    unknown = sorted(set(example.detections) - set(arms))
    if unknown:
        raise ValueError(f"example {example.image}: no arm is named {', '.join(unknown)}")
    labels = [box.label for box in example.ground_truth]
    labels += [box.label for found in example.detections.values() for box in found]
    if any(label >= classes for label in labels):
        raise ValueError(f"example {example.image}: label {max(labels)} is no class; labels go from 0 to {classes - 1}")
