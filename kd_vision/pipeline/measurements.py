"""What is measured of the finished runs of a benchmark: matches, kinds of errors, training length, latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kd_vision.config.schema import RunConfig
from kd_vision.core.errors import GateError
from kd_vision.core.files import read_json
from kd_vision.core.predictions import Detections
from kd_vision.core.progress import ProgressFactory
from kd_vision.core.run_directory import RunDirectory
from kd_vision.data.records import DetectionData
from kd_vision.evaluation.coco import evaluate_detections
from kd_vision.evaluation.match_table import MatchTable, match_table
from kd_vision.evaluation.tide import ERROR_KINDS, error_costs
from kd_vision.export.latency import measure_in_turn
from kd_vision.pipeline.arms import PLAIN
from kd_vision.pipeline.data import RunData
from kd_vision.pipeline.evaluate import predict_split
from kd_vision.pipeline.export import run_export
from kd_vision.pipeline.models import best_device, load_model
from kd_vision.report.benchmark_data import Arm, BudgetCheck, ErrorKindFacts

LONGER = "longer"
"""Folder of the plain student that is trained longer, to check the budget."""


def predict_run(
    config: RunConfig, directory: Path, truth: DetectionData, progress: ProgressFactory
) -> dict[int, Detections]:
    """Predict a split with the student of a run."""
    loaded = load_model(directory / "student.pt", config.image_size, device=best_device())
    return predict_split(loaded.predictor, truth, config.image_size, config.evaluate, progress)


def read_matches(
    config: RunConfig, directory: RunDirectory, truth: DetectionData, progress: ProgressFactory
) -> MatchTable:
    """Return the matches that were kept when the run was measured; runs of earlier versions are predicted again."""
    if directory.matches.is_file():
        table = MatchTable.load(directory.matches)
        if table.fits(truth):
            return table
    table = match_table(truth, predict_run(config, directory.root, truth, progress))
    table.save(directory.matches)
    return table


def check_budget(
    config: RunConfig, root: Path, seed: int, data: RunData, progress: ProgressFactory
) -> BudgetCheck | None:
    """Compare the plain student with one trained longer, on the split for choices; None without such a run."""
    runs = [RunDirectory(folder / PLAIN / f"seed{seed}") for folder in (root, root / LONGER)]
    if not all(run.metrics.is_file() for run in runs):
        return None
    truth = data.split(config.evaluate.split)
    found = [predict_run(config, run.root, truth, progress) for run in runs]
    aps = [evaluate_detections(truth, one, config.evaluate.backend).ap for one in found]
    steps = [int(read_json(run.fit)["steps"]) for run in runs]
    return BudgetCheck(split=truth.name, seed=seed, steps=steps[0], longer_steps=steps[1], ap=aps[0], longer_ap=aps[1])


def with_errors(arm: Arm, truth: DetectionData, detections: Mapping[str, dict[int, Detections]]) -> Arm:
    """Return the arm with its kinds of errors, where its detections are known."""
    if arm.name not in detections:
        return arm
    result = error_costs(truth, detections[arm.name])
    errors = {str(kind): ErrorKindFacts(count=result.counts[kind], cost=result.costs[kind]) for kind in ERROR_KINDS}
    return arm.model_copy(update={"errors": errors})


def with_latencies(config: RunConfig, arms: Sequence[Arm], root: Path) -> list[Arm]:
    """Export the first run of every student and time the files in turn, so that all meet the same load.

    An arm whose file the parity gate refuses (e.g. without boxes to compare, of a student without detections; its AP
    shows it) has no latency, and its description says why.
    """
    files, refusals = {}, {}
    for arm in arms:
        if arm.role == "teacher":
            continue
        student = root / str(arm.runs[0].directory) / "student.pt"
        files[arm.name] = student.with_suffix(".onnx")
        try:
            run_export(
                student,
                files[arm.name],
                config.data,
                image_size=config.image_size,
                split=config.evaluate.split,
                with_latency=False,
            )
        except GateError as refusal:
            refusals[arm.name] = f"; no latency, as its export failed the parity gate: {str(refusal).splitlines()[-1]}"
            del files[arm.name]
    latencies = measure_in_turn(files, reference=next((arm.name for arm in arms if arm.role == "plain"), None))
    return [
        arm.model_copy(
            update={
                "onnx_latency_ms": latencies.get(arm.name),
                "description": arm.description + refusals.get(arm.name, ""),
            }
        )
        for arm in arms
    ]
