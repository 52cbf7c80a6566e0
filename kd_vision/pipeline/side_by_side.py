"""Runs several runs of a benchmark at a time, each in a process of its own with its share of threads or its own GPU."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from kd_vision.core.errors import KDVisionError, RequestError, TrainingError, first_line
from kd_vision.core.progress import no_progress
from kd_vision.pipeline.arm_run import ArmRun, execute
from kd_vision.pipeline.data import RunData, worker_count
from kd_vision.pipeline.overall_progress import OverallProgress, last_step

_POLL_SECONDS = 1.0
_GRACE_SECONDS = 60.0
_STOPPED = 130
WORKER_LOG = "worker.log"
"""In a run directory: what the process of the run printed."""


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Share:
    """What one of the processes may use.

    Attributes:
        threads: of torch and OpenMP.
        gpu: entry of CUDA_VISIBLE_DEVICES; None: as in the parent.
    """

    threads: int
    gpu: str | None = None

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables, which libraries read when they are loaded."""
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        return threads if self.gpu is None else {**threads, "CUDA_VISIBLE_DEVICES": self.gpu}


def resolve_jobs(jobs: int | str, accelerator: str) -> int:
    """Return how many runs go side by side; for ``auto`` one per GPU, without GPUs half the cores.

    Raises:
        RequestError: it is no number of jobs.
    """
    if jobs == "auto":
        return len(_gpus(accelerator)) or max(1, _cores() // 2)
    try:
        count = int(jobs)
    except ValueError:
        count = 0
    if count < 1:
        raise RequestError(f"--jobs: '{jobs}' is no number of processes; give 1, 2, ... or auto")
    return count


def shares(jobs: int, accelerator: str) -> list[Share]:
    """Return the share of each process: an equal part of the threads, and the GPUs in turn."""
    threads, gpus = max(1, torch.get_num_threads() // jobs), _gpus(accelerator)
    return [Share(threads, gpus[slot % len(gpus)] if gpus else None) for slot in range(jobs)]


def _gpus(accelerator: str) -> list[str]:
    count = torch.cuda.device_count() if accelerator in ("auto", "cuda") else 0
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return listed.split(",")[:count] if listed else [str(index) for index in range(count)]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class _Worker:
    """A run in its process, and the pipe through which an error of it comes."""

    index: int
    run: ArmRun
    slot: int
    process: BaseProcess
    answers: Connection


def run_side_by_side(
    runs: Sequence[ArmRun], waiting: Sequence[int], jobs: int, overall: OverallProgress
) -> dict[int, KDVisionError]:
    """Execute runs, at most `jobs` at a time.

    Processes are spawned, so that a script that calls this needs ``if __name__ == "__main__":``.

    Args:
        runs: all runs of the benchmark.
        waiting: positions in `runs` of those to execute, in order.
        jobs: processes.
        overall: receives the progress, read from each run's ``metrics.jsonl``.

    Returns:
        The error of every run that failed, by position; the others are finished.

    Raises:
        KeyboardInterrupt: Ctrl-C; all processes have ended, each with a checkpoint where it was training.
    """
    queue, free, workers = list(waiting), list(range(jobs)), list[_Worker]()
    parts = shares(jobs, runs[0].config.train.accelerator) if runs else []
    failed: dict[int, KDVisionError] = {}
    try:
        while queue or workers:
            while queue and free:
                workers.append(_start(queue.pop(0), runs, free.pop(0), parts, overall))
            wait([worker.process.sentinel for worker in workers], timeout=_POLL_SECONDS)
            for worker in workers:
                overall.stepped(worker.index, last_step(worker.run.directory.log))
            for worker in [worker for worker in workers if not worker.process.is_alive()]:
                workers.remove(worker)
                free.append(worker.slot)
                overall.ended(worker.index)
                if (error := _error_of(worker)) is not None:
                    failed[worker.index] = error
                    _log.warning("%s failed: %s", worker.run.title, first_line(error))
    finally:
        _stop(workers)
    return failed


def _start(index: int, runs: Sequence[ArmRun], slot: int, parts: Sequence[Share], overall: OverallProgress) -> _Worker:
    run = runs[index]
    context = multiprocessing.get_context("spawn")
    answers, sender = context.Pipe(duplex=False)
    workers = max(1, worker_count("auto") // len(parts)) if run.config.train.workers == "auto" else None
    if workers is not None:  # the batches do not depend on it
        run = replace(run, config=replace(run.config, train=run.config.train.model_copy(update={"workers": workers})))
    overall.started(index, last_step(run.directory.log))
    with _environment(parts[slot].variables):
        process = context.Process(target=_work, args=(run, parts[slot].threads, sender), name=run.title)
        process.start()
    sender.close()
    return _Worker(index, run, slot, process, answers)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, which a process that is started within inherits."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _error_of(worker: _Worker) -> KDVisionError | None:
    """Return why a process that has ended did not finish its run; None: it did."""
    worker.process.join()
    code, log = worker.process.exitcode, worker.run.folder / WORKER_LOG
    with worker.answers:
        try:
            answer = worker.answers.recv() if worker.answers.poll() else None
        except EOFError:
            answer = None
    if isinstance(answer, KDVisionError):
        return answer
    if code == 0:
        return None
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit status {code}"
    return TrainingError(f"its process {how}, see {log}; the same command continues")


def _stop(workers: Sequence[_Worker]) -> None:
    """End all processes: first as by Ctrl-C, after which each writes a checkpoint, then by force."""
    alive = [worker.process for worker in workers if worker.process.is_alive()]
    try:
        for process in alive:
            _interrupt(process.pid)
        for process in alive:
            process.join(_GRACE_SECONDS)
    finally:  # also where Ctrl-C comes again
        for process in alive:
            if process.is_alive():
                process.terminate()
                process.join()


def _interrupt(pid: int | None) -> None:
    with contextlib.suppress(ProcessLookupError):
        if pid is not None:
            os.kill(pid, signal.SIGINT)


def _work(run: ArmRun, threads: int, answers: Connection) -> None:
    """Execute one run; the target of a process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in background jobs of a shell
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _log_to(run.folder / WORKER_LOG)
    try:
        execute(run, RunData(run.config.data), no_progress)
    except KDVisionError as error:
        answers.send(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(_STOPPED)


def _end_with_parent() -> None:
    """Stop as by Ctrl-C when the parent is killed; else a rerun would find a second trainer in the run directory."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        _interrupt(os.getpid())


def _log_to(path: Path) -> None:
    """Write to a file what this process logs and prints, also from C and in the traceback that ends it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("kd_vision").setLevel(logging.INFO)
