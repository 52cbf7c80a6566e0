"""Compares teacher, baseline and distilled student over several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kd_vision.config.load import load_config
from kd_vision.config.schema import RunConfig, changed_keys
from kd_vision.core.errors import RequestError
from kd_vision.core.files import read_json
from kd_vision.core.progress import ProgressFactory, log_progress
from kd_vision.core.run_directory import RunDirectory
from kd_vision.pipeline.arms import ARMS, DISTILLED, PLAIN, arm_config
from kd_vision.pipeline.assemble import BenchmarkResult, assemble
from kd_vision.pipeline.data import RunData, output_directory
from kd_vision.pipeline.models import best_device
from kd_vision.pipeline.teachers import build_online_teachers, teacher_hash, teacher_input_size
from kd_vision.pipeline.train import measure_run, origin_of, train


def benchmark(
    config: RunConfig | Path | str,
    seeds: Sequence[int] = (0,),
    out: Path | str | None = None,
    overrides: Sequence[str] = (),
    progress: ProgressFactory = log_progress,
    with_latency: bool = True,
    control: bool = False,
) -> BenchmarkResult:
    """Train the baseline and the distilled student for every seed; measure both and the teacher.

    The runs of a seed share initial weights, data order, augmentation and number of steps; the distilled student gets
    unlabelled images in addition to the same labelled batches. Finished runs are not repeated, so that a benchmark
    that was stopped continues.

    Args:
        config: a config with a teacher, or the path of one.
        seeds: one pair of runs each.
        out: directory; None: ``runs/<config name>-benchmark``.
        overrides: ``key=value`` strings, where `config` is a path.
        progress: receives the progress.
        with_latency: export each arm and measure its latency.
        control: also train a control with the ground truth as teacher: see `control_config`.

    Raises:
        RequestError: the config has no teacher, or the directory holds other runs.
    """
    if not isinstance(config, RunConfig):
        config = load_config(Path(config), overrides)
    _refuse_wrong_request(config, seeds)
    root = Path(out) if out is not None else output_directory(None, config).with_name(f"{config.source.stem}-benchmark")
    data = RunData(config.data)
    size = teacher_input_size(config, build_online_teachers(config, data.classes))
    for seed in seeds:
        for name in ARMS if control else (PLAIN, DISTILLED):
            _run_arm(arm_config(config, name, seed), root / name / f"seed{seed}", name, data, size, progress)
    return assemble(config, seeds, root, data, progress, with_latency, control)


def _refuse_wrong_request(config: RunConfig, seeds: Sequence[int]) -> None:
    if not config.is_distilled:
        raise RequestError(f"{config.source}: teacher: is missing; a benchmark compares training with and without it")
    if config.train.label_fraction == 0:
        raise RequestError(
            f"{config.source}: train.label_fraction: without labels there is no baseline to compare with; train with "
            f"`kd-vision train` and compare with the teacher: `kd-vision evaluate {config.source} --data {config.data}`"
        )
    taken = [teacher.name for teacher in config.teachers if teacher.name in ARMS]
    if taken:
        raise RequestError(f"{config.source}: teacher.name: '{taken[0]}' is the name of a student here; give another")
    if config.train.devices != 1 or config.train.num_nodes != 1:
        raise RequestError(
            f"{config.source}: train.devices: a benchmark runs on one device; train the arms on several with "
            f"`kd-vision train`, or set devices and num_nodes to 1"
        )
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise RequestError(f"--seeds: give different seeds from 0 up, e.g. 0 1 2; given {' '.join(map(str, seeds))}")


def _run_arm(
    config: RunConfig, folder: Path, name: str, data: RunData, size: int | None, progress: ProgressFactory
) -> None:
    directory = RunDirectory(folder)
    resume = directory.last_checkpoint.is_file()
    if directory.metrics.is_file() or resume:
        _refuse_other_run(directory, config, data, size)
    if directory.metrics.is_file():
        _measure_anew(directory, config, data)
        return
    title = f"{name}, seed {config.train.seed}"
    train(config, folder, resume, progress=progress, title=title, sample_size=size, data=data)


def _measure_anew(directory: RunDirectory, config: RunConfig, data: RunData) -> None:
    """Measure a finished run again where the images or labels that it was measured on have changed."""
    truth = data.final_split(config)
    fit = read_json(directory.fit)
    if (fit.get("split"), fit.get("measured_on")) != (truth.name, data.content_hash(truth.name)):
        measure_run(config, directory, truth, best_device())


def _refuse_other_run(directory: RunDirectory, config: RunConfig, data: RunData, size: int | None) -> None:
    """Refuse an existing run of another config or of other files.

    Raises:
        RequestError: naming every difference.
    """
    changed = changed_keys(load_config(directory.config, files_exist=False), config)
    made_with = read_json(directory.environment).get("hashes", {})
    if made_with.get("teacher") and made_with["teacher"] != teacher_hash(config):
        changed.append("the teacher's file has changed")
    if made_with.get("data") and made_with["data"] != data.training_hashes(config):
        changed.append("the training data have changed")
    origin = origin_of(config, size)
    if made_with.get("student", origin["student"]) != origin["student"]:
        changed.append("the weights that the student starts from have changed")
    if made_with.get("view", size) != size:
        was, now = (sample_size or config.image_size for sample_size in (made_with["view"], size))
        changed.append(f"its samples were made at {was} px, now at {now} px")
    if changed:
        raise RequestError(f"{directory.root}: holds a run of another config: {'; '.join(changed)}; give another --out")
