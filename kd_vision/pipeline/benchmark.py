"""Trains the arms of a benchmark over several seeds: plain, control and distilled student, or those of a trial file."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kd_vision.config.load import load_config
from kd_vision.config.schema import RunConfig
from kd_vision.config.trial import LONGER, Trial, is_trial, load_trial
from kd_vision.core.errors import KDVisionError, RequestError, first_line
from kd_vision.core.files import read_json, write_json
from kd_vision.core.progress import ProgressFactory, log_progress
from kd_vision.pipeline.arm_run import ArmRun, execute, refuse_other_runs
from kd_vision.pipeline.arms import (
    ARM_FILE,
    CONTROL,
    PLAIN,
    StudentArm,
    default_arms,
    has_labels_alone,
    notes_on,
    trial_arms,
)
from kd_vision.pipeline.assemble import BenchmarkResult, assemble
from kd_vision.pipeline.data import RunData, output_directory
from kd_vision.pipeline.overall_progress import TITLE, OverallProgress, RunState, last_step
from kd_vision.pipeline.side_by_side import resolve_jobs, run_side_by_side
from kd_vision.pipeline.teachers import build_online_teachers, teacher_input_size

LONGER_FACTOR = 1.5
NOTES_FILE = "notes.json"
"""In the directory of a benchmark: a list of sentences that a reader of the numbers must know."""

_log = logging.getLogger(__name__)


def benchmark(
    config: RunConfig | Trial | Path | str,
    seeds: Sequence[int] | None = None,
    out: Path | str | None = None,
    overrides: Sequence[str] = (),
    progress: ProgressFactory = log_progress,
    with_latency: bool = True,
    control: bool = True,
    jobs: int | str = 1,
    check_budget: bool = False,
) -> BenchmarkResult:
    """Train every arm for every seed; measure them and the teacher.

    The runs of a seed share data order, augmentation and, unless a trial file says otherwise, initial weights and
    number of steps; the distilled student gets unlabelled images in addition to the same labelled batches. Finished
    runs are not repeated, so that a benchmark that was stopped continues.

    Args:
        config: a config with a teacher or a trial file, read or as a path.
        seeds: one run of each arm for each; None: those of the trial file, else 0.
        out: directory; None: ``runs/<config name>-benchmark``, or ``runs/<trial name>``.
        overrides: ``key=value`` strings, where `config` is a path.
        progress: receives the progress of the whole.
        with_latency: export each arm and measure its latency.
        control: also train a control with the ground truth as teacher: see `control_config`; a trial file has its own.
        jobs: runs side by side, each in a process; ``auto``: one per GPU, without GPUs one per two cores. A script
            that asks for several needs ``if __name__ == "__main__":``.
        check_budget: also train the plain twin of the first seed one and a half times as long.

    Raises:
        RequestError: the config has no teacher, or the directory holds other runs.
        KDVisionError: a run failed; the others are finished.
    """
    read = _read(config, overrides)
    run_config, chosen = _config_of(read), _seeds(read, seeds)
    arms, count = _arms(read, control), resolve_jobs(jobs, run_config.train.accelerator)
    root = Path(out) if out is not None else _directory(read)
    data = RunData(run_config.data)
    runs = _runs(arms, chosen, root, _sample_size(read, data))
    if check_budget:
        runs.append(_longer(runs, root))
    refuse_other_runs(runs, data)
    _write_facts(root, arms, runs, notes_on(arms, run_config.teachers, {a.name: _steps(a.config, data) for a in arms}))
    _execute_all(runs, data, count, progress)
    return assemble(run_config, chosen, root, data, progress, with_latency, any(a.name == CONTROL for a in arms))


def _read(config: RunConfig | Trial | Path | str, overrides: Sequence[str]) -> RunConfig | Trial:
    if isinstance(config, (RunConfig, Trial)):
        return config
    path = Path(config)
    return load_trial(path, tuple(overrides)) if is_trial(path) else load_config(path, overrides)


def _directory(read: RunConfig | Trial) -> Path:
    if isinstance(read, Trial):
        return Path("runs") / read.source.stem
    return output_directory(None, read).with_name(f"{read.source.stem}-benchmark")


def _config_of(read: RunConfig | Trial) -> RunConfig:
    return read.config if isinstance(read, Trial) else read


def _seeds(read: RunConfig | Trial, given: Sequence[int] | None) -> Sequence[int]:
    """Return the seeds that were given, else those of the trial file, else 0."""
    seeds = given if given is not None else read.seeds if isinstance(read, Trial) else (0,)
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise RequestError(f"--seeds: give different seeds from 0 up, e.g. 0 1 2; given {' '.join(map(str, seeds))}")
    return seeds


def _arms(read: RunConfig | Trial, control: bool) -> tuple[StudentArm, ...]:
    """Return the arms; refuse what cannot be compared."""
    _refuse_wrong_request(_config_of(read))
    arms = trial_arms(read) if isinstance(read, Trial) else default_arms(read, control)
    _refuse_wrong_arms(read, arms)
    return arms


def _refuse_wrong_request(config: RunConfig) -> None:
    if not config.is_distilled:
        raise RequestError(f"{config.source}: teacher: is missing; a benchmark compares training with and without it")
    if config.train.label_fraction == 0:
        raise RequestError(
            f"{config.source}: train.label_fraction: without labels there is no baseline to compare with; train with "
            f"`kd-vision train` and compare with the teacher: `kd-vision evaluate {config.source} --data {config.data}`"
        )
    if config.train.devices != 1 or config.train.num_nodes != 1:
        raise RequestError(
            f"{config.source}: train.devices: a benchmark runs on one device; train the arms on several with "
            f"`kd-vision train`, or set devices and num_nodes to 1"
        )


def _refuse_wrong_arms(read: RunConfig | Trial, arms: Sequence[StudentArm]) -> None:
    """Refuse a teacher with the name of an arm, and plain or control arms without labels."""
    config = _config_of(read)
    names = {PLAIN, CONTROL, "distilled", *(arm.name for arm in arms)}
    errors = [
        f"{config.source}: teacher.name: '{teacher.name}' is the name of a student here; give another"
        for teacher in config.teachers
        if teacher.name in names
    ]
    errors += [
        f"{read.source}: arms.{arm.name}.set: train.label_fraction: is 0; without labels only a teacher can train a "
        f"student, so give base: distilled, or a number above 0"
        for arm in arms
        if arm.config.train.label_fraction == 0 and has_labels_alone(arm.config)
    ]
    if errors:
        raise RequestError(*errors)


def _sample_size(read: RunConfig | Trial, data: RunData) -> int | None:
    """Return the largest image size of all arms' teachers, as all arms share their pixels; see `train`."""
    configs = [arm.config for arm in read.arms] if isinstance(read, Trial) else [read]
    distinct: list[RunConfig] = []
    for config in configs:
        if all(config.teachers != other.teachers for other in distinct):
            distinct.append(config)
    sizes = [teacher_input_size(config, build_online_teachers(config, data.classes)) for config in distinct]
    return max((size for size in sizes if size is not None), default=None)


def _runs(arms: Sequence[StudentArm], seeds: Sequence[int], root: Path, size: int | None) -> list[ArmRun]:
    return [
        ArmRun(arm.name, arm.at_seed(seed), root / arm.name / f"seed{seed}", size) for seed in seeds for arm in arms
    ]


def _longer(runs: Sequence[ArmRun], root: Path) -> ArmRun:
    """Return the plain twin of the first seed with more epochs; it lies outside the arms of the report."""
    plain = next(run for run in runs if run.arm == PLAIN)
    epochs = math.ceil(plain.config.train.epochs * LONGER_FACTOR)
    config = replace(plain.config, train=plain.config.train.model_copy(update={"epochs": epochs}))
    return replace(plain, arm=f"{LONGER}/{PLAIN}", config=config, folder=root / LONGER / PLAIN / f"seed{plain.seed}")


def _write_facts(root: Path, arms: Sequence[StudentArm], runs: Sequence[ArmRun], notes: Sequence[str]) -> None:
    """Write the role of each arm and the notes; log the notes."""
    for arm in arms:
        write_json(root / arm.name / ARM_FILE, arm.to_mapping())
    for run in runs:
        if run.arm.startswith(f"{LONGER}/"):
            text = f"the plain twin trained {LONGER_FACTOR:g} x longer: {run.config.train.epochs} epochs"
            write_json(run.folder.parent / ARM_FILE, {"role": "other", "description": text})
    write_json(root / NOTES_FILE, list(notes))
    for note in notes:
        _log.warning("WARNING: %s", note)


def _execute_all(runs: Sequence[ArmRun], data: RunData, jobs: int, progress: ProgressFactory) -> None:
    """Execute all runs; one that fails does not keep the others from being finished.

    Raises:
        KDVisionError: of the class of the first error, with a line for each run that failed.
    """
    states = [_state(run, data) for run in runs]
    waiting = [index for index, run in enumerate(runs) if not run.is_trained]
    for run in runs:
        if run.is_trained:
            execute(run, data, progress)  # measures it again where the split has changed
    if not waiting:
        return
    with progress(TITLE) as bar:
        overall = OverallProgress(states, min(jobs, len(waiting)), bar)
        if jobs > 1 and len(waiting) > 1:
            failed = run_side_by_side(runs, waiting, min(jobs, len(waiting)), overall)
        else:
            failed = _run_in_turn(runs, waiting, data, overall)
    if failed:
        lines = [f"{runs[index].title}: {line}" for index, error in failed.items() for line in str(error).splitlines()]
        first = next(iter(failed.values()))
        raise type(first)("\n".join(lines))


def _run_in_turn(
    runs: Sequence[ArmRun], waiting: Sequence[int], data: RunData, overall: OverallProgress
) -> dict[int, KDVisionError]:
    failed: dict[int, KDVisionError] = {}
    for index in waiting:
        try:
            execute(runs[index], data, overall.of_run(index))
        except KDVisionError as error:
            failed[index] = error
            _log.warning("%s failed: %s", runs[index].title, first_line(error))
        overall.ended(index)
    return failed


def _steps(config: RunConfig, data: RunData) -> int:
    """Return the number of batches of a run, as the loader counts them; early stopping may end it before."""
    labelled, unlabelled = data.training(config)
    images = len(labelled) or len(unlabelled or ())
    return config.train.epochs * math.ceil(images / config.train.batch_size)


def _state(run: ArmRun, data: RunData) -> RunState:
    """Return where a run stands on disk."""
    steps = _steps(run.config, data)
    state = RunState(run.arm, run.seed, steps)
    if run.is_trained:
        fit = read_json(run.directory.fit)
        state.step, state.seconds_per_step = steps, fit["seconds"] / max(fit["steps"], 1)
    elif run.directory.last_checkpoint.is_file():
        state.step = last_step(run.directory.log)
    return state
