"""One run of a benchmark: an arm in one seed. Finished runs are kept, killed ones go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kd_vision.config.load import load_config
from kd_vision.config.schema import RunConfig, changed_keys
from kd_vision.core.errors import RequestError
from kd_vision.core.files import read_json
from kd_vision.core.progress import ProgressFactory
from kd_vision.core.run_directory import RunDirectory
from kd_vision.pipeline.data import RunData
from kd_vision.pipeline.models import best_device
from kd_vision.pipeline.teachers import teacher_hash
from kd_vision.pipeline.train import measure_run, origin_of, train


@dataclass(frozen=True, slots=True)
class ArmRun:
    """An arm in one seed.

    Attributes:
        arm: name of the arm.
        config: with the seed of the run.
        folder: run directory.
        sample_size: side of the samples that all arms share; see `train`.
    """

    arm: str
    config: RunConfig
    folder: Path
    sample_size: int | None

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.config.train.seed

    @property
    def title(self) -> str:
        """Name for messages."""
        return f"{self.arm}, seed {self.seed}"

    @property
    def directory(self) -> RunDirectory:
        """The files of the run."""
        return RunDirectory(self.folder)

    @property
    def is_trained(self) -> bool:
        """True for a finished run; at most its measurement is old."""
        return self.directory.metrics.is_file()


def execute(run: ArmRun, data: RunData, progress: ProgressFactory) -> None:
    """Train a run from its last checkpoint, or from the start; measure a finished one again where need be."""
    if run.is_trained:
        _measure_anew(run, data)
        return
    resume = run.directory.last_checkpoint.is_file()
    train(
        run.config, run.folder, resume, progress=progress, title=run.title, sample_size=run.sample_size, data=data
    )  # fmt: skip


def _measure_anew(run: ArmRun, data: RunData) -> None:
    """Measure a finished run again where the images or labels that it was measured on have changed."""
    truth = data.final_split(run.config)
    fit = read_json(run.directory.fit)
    if (fit.get("split"), fit.get("measured_on")) != (truth.name, data.content_hash(truth.name)):
        measure_run(run.config, run.directory, truth, best_device())


def refuse_other_runs(runs: Sequence[ArmRun], data: RunData) -> None:
    """Refuse existing runs of other configs or of other files, before anything is trained.

    Raises:
        RequestError: a line for each run, with every difference.
    """
    errors = []
    for run in runs:
        if run.is_trained or run.directory.last_checkpoint.is_file():
            changed = _changes(run, data)
            if changed:
                errors.append(f"{run.folder}: holds a run of another config: {'; '.join(changed)}; give another --out")
    if errors:
        raise RequestError(*errors)


def _changes(run: ArmRun, data: RunData) -> list[str]:
    """Return the differences between a run on disk and the one that is asked for."""
    changed = changed_keys(load_config(run.directory.config, files_exist=False), run.config)
    made_with = read_json(run.directory.environment).get("hashes", {})
    if made_with.get("teacher") and made_with["teacher"] != teacher_hash(run.config):
        changed.append("the teacher's file has changed")
    if made_with.get("data") and made_with["data"] != data.training_hashes(run.config):
        changed.append("the training data have changed")
    origin = origin_of(run.config, run.sample_size)
    if made_with.get("student", origin["student"]) != origin["student"]:
        changed.append("the weights that the student starts from have changed")
    if made_with.get("view", run.sample_size) != run.sample_size:
        was, now = (size or run.config.image_size for size in (made_with["view"], run.sample_size))
        changed.append(f"its samples were made at {was} px, now at {now} px")
    return changed
