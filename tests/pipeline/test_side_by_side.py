"""Runs side by side are the runs in turn: same numbers, same refusals, and a break that a rerun goes on from."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from kd_vision.core.errors import GateError, RequestError, TrainingError
from kd_vision.core.progress import Progress
from kd_vision.core.run_directory import RunDirectory
from kd_vision.pipeline import side_by_side
from kd_vision.pipeline.benchmark import benchmark
from kd_vision.pipeline.overall_progress import TITLE
from kd_vision.pipeline.side_by_side import Share, resolve_jobs, shares

SPEED = ("images_per_second",)


def rows(run: Path) -> list[dict[str, float]]:
    """Return the log of a run without its speed."""
    return [{k: v for k, v in row.items() if k not in SPEED} for row in RunDirectory(run).read_log()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)
    average: dict[str, torch.Tensor] = content["average"]
    return average


def test_side_by_side_gives_the_bits_of_runs_in_turn(write_config: Callable[..., Path], tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []

    class Recorder:
        def __init__(self, title: str) -> None:
            self.title = title

        def step(self, done: int, total: int, text: str = "") -> None:
            if self.title == TITLE:
                told.append((done, total, text))

    @contextmanager
    def recorded(title: str) -> Iterator[Progress]:
        yield Recorder(title)

    config = write_config()
    for jobs in (1, 2):
        out = tmp_path / f"jobs{jobs}"
        told.clear()
        result = benchmark(config, [0], out, with_latency=False, control=False, jobs=jobs, progress=recorded)
        assert told[-1][:2] == (12, 12)
        assert [done for done, *_ in told] == sorted(done for done, *_ in told)
        assert any("arm 2 of 2: distilled, seed 0, step " in text for *_, text in told)
        assert [arm.name for arm in result.data.arms] == ["teacher", "plain", "distilled"]
    assert any(text.count("arm ") == 2 for *_, text in told)  # both at a time
    for arm in ("plain", "distilled"):
        one, two = (tmp_path / f"jobs{jobs}" / arm / "seed0" for jobs in (1, 2))
        assert rows(one) == rows(two)
        first, second = weights(one), weights(two)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert json.loads((one / "metrics.json").read_text()) == json.loads((two / "metrics.json").read_text())
    assert json.loads((tmp_path / "jobs2" / "plain" / "arm.json").read_text())["role"] == "plain"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failing_arm_leaves_the_others_finished(jobs: int, write_config: Callable[..., Path], tmp_path: Path) -> None:
    out, seeds = tmp_path / "bench", [0, 1] if jobs == 1 else [0]
    with pytest.raises(GateError) as caught:
        benchmark(
            write_config(train="epochs: 1"), seeds, out, ["allow_weak_teacher=false"], control=False, jobs=jobs,
        )  # fmt: skip
    assert caught.value.exit_code == 3
    assert all((out / "plain" / f"seed{seed}" / "metrics.json").is_file() for seed in seeds)
    assert not (out / "distilled" / "seed0" / "metrics.json").exists()
    starts = [line.partition(": ")[0] for line in str(caught.value).splitlines()]
    assert list(dict.fromkeys(starts)) == [f"distilled, seed {seed}" for seed in seeds]
    assert "is not better than the untrained student's" in str(caught.value)


def test_a_break_ends_all_processes_and_a_rerun_goes_on(write_config: Callable[..., Path], tmp_path: Path) -> None:
    config, out = write_config(train="epochs: 8"), tmp_path / "bench"
    command = [sys.executable, "-m", "kd_vision", "benchmark", str(config), "--out", str(out), "--jobs", "2"]
    command += ["--no-control", "--no-latency"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def take_interrupts() -> None:  # a shell has its jobs in the background ignore them
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=take_interrupts
    ) as it:  # fmt: skip
        folders = [out / arm / "seed0" for arm in ("plain", "distilled")]
        deadline = time.monotonic() + 600
        while not all((folder / "metrics.jsonl").is_file() for folder in folders):
            assert it.poll() is None, it.stderr and it.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        children = psutil.Process(it.pid).children(recursive=True)
        it.send_signal(signal.SIGINT)
        _, told = it.communicate(timeout=300)
    assert it.returncode == 130
    assert told.splitlines()[-1] == "kd-vision: stopped; the same command continues"
    _, alive = psutil.wait_procs(children, timeout=60)  # multiprocessing's own helper ends a moment after the parent
    assert alive == []
    assert all((folder / "checkpoints" / "last.ckpt").is_file() for folder in folders)
    assert not (out / "benchmark.json").exists()
    steps = [len(rows(folder)) for folder in folders]
    assert min(steps) < 24  # at least one was stopped in the middle
    benchmark(config, [0], out, with_latency=False, control=False)
    for folder in folders:
        assert [row["step"] for row in rows(folder)] == list(range(1, 25))


def test_the_longer_twin_lies_outside_the_arms(write_config: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "bench"
    result = benchmark(
        write_config(train="epochs: 1"), [3], out, with_latency=False, control=False, check_budget=True
    )  # fmt: skip
    assert [arm.name for arm in result.data.arms] == ["teacher", "plain", "distilled"]
    run = out / "longer" / "plain" / "seed3"
    assert json.loads((run / "fit.json").read_text())["steps"] == 6  # of 2 epochs, 1.5 rounded up
    assert json.loads((run / "metrics.json").read_text())["n_images"] == 6
    assert json.loads((run.parent / "arm.json").read_text()) == {
        "role": "other", "description": "the plain twin trained 1.5 x longer: 2 epochs",
    }  # fmt: skip
    notes = json.loads((out / "notes.json").read_text())
    assert notes[0].startswith("the student starts from random weights (plain, distilled), while a better start")


def test_a_trial_file_is_trained_arm_by_arm(
    write_config: Callable[..., Path], tmp_path: Path, teacher_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_config(train="epochs: 1")
    trial = tmp_path / "trial.yaml"
    trial.write_text(
        f"config: config.yaml\nseeds: [5]\narms:\n  plain:\n  distilled:\n  started: {{base: plain, description: far, "
        f"set: {{student: {{weights: {teacher_file}}}, train: {{epochs: 2}}}}}}\n"
    )
    out = tmp_path / "bench"
    result = benchmark(trial, out=out, with_latency=False)
    assert [arm.name for arm in result.data.arms] == ["teacher", "plain", "distilled", "started"]
    assert json.loads((out / "started" / "arm.json").read_text()) == {"role": "other", "description": "far"}
    assert len(rows(out / "started" / "seed5")) == 6
    assert json.loads((out / "notes.json").read_text())[1] == (
        "the arms are trained for different numbers of steps: plain 3, distilled 3, started 6"
    )
    assert sum(message.startswith("WARNING: ") for message in caplog.messages) == 2


def test_jobs_are_a_number_or_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "_cores", lambda: 6)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert [resolve_jobs("auto", "auto"), resolve_jobs("4", "auto"), resolve_jobs(2, "cpu")] == [3, 4, 2]
    for wrong in ("0", "many", "-1"):
        with pytest.raises(RequestError, match=f"--jobs: '{wrong}' is no number of processes; give 1, 2, ... or auto"):
            resolve_jobs(wrong, "auto")


def test_each_process_has_its_share_of_threads_and_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert resolve_jobs("auto", "cuda") == 2
    assert shares(3, "auto") == [Share(2, "0"), Share(2, "1"), Share(2, "0")]
    assert shares(2, "cpu") == [Share(4), Share(4)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [share.gpu for share in shares(2, "auto")] == ["5", "7"]
    assert Share(4, "5").variables == {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "5"}


def test_a_process_that_dies_is_told_by_its_end(tmp_path: Path) -> None:
    from kd_vision.config.schema import RunConfig  # for the type only
    from kd_vision.pipeline.arm_run import ArmRun

    class Ended:
        exitcode = -9

        def join(self) -> None:
            pass

    receiver, sender = multiprocessing.Pipe(duplex=False)
    sender.close()
    config: RunConfig = None  # type: ignore[assignment]
    worker = side_by_side._Worker(0, ArmRun("plain", config, tmp_path, None), 0, Ended(), receiver)  # type: ignore[arg-type]
    error = side_by_side._error_of(worker)
    assert isinstance(error, TrainingError)
    assert str(error) == f"its process was killed by signal 9, see {tmp_path}/worker.log; the same command continues"
