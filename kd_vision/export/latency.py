"""How long one image takes on the CPU, measured plainly."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kd_vision.core.errors import RequestError
from kd_vision.core.latency import Latency
from kd_vision.runtime.session import open_session

_DEFAULT_SIDE = 640


def measure_latency(onnx: Path, runs: int = 50, warmup: int = 10, threads: int = 1) -> Latency:
    """Time an ONNX file with onnxruntime on the CPU.

    The input is one fixed image of seeded noise, so that runs differ by the machine alone. A file
    with a fixed batch above one is refused: its time per image would be another quantity.

    Args:
        onnx: the file.
        runs: calls measured.
        warmup: calls before, not measured.
        threads: within one operator.

    Raises:
        RequestError: the file cannot be opened or takes more than one image at a time.
    """
    return measure_in_turn({"": onnx}, runs, warmup, threads)[""]


def measure_in_turn(
    files: Mapping[str, Path], runs: int = 50, warmup: int = 10, threads: int = 1, reference: str | None = None
) -> dict[str, Latency]:
    """Time several ONNX files, one call of each in every round, so that a load of the machine meets all of them.

    Args:
        files: by name.
        runs: rounds measured.
        warmup: rounds before, not measured.
        threads: within one operator.
        reference: the name in `files` to which `Latency.ratio` is taken; None: no ratio.

    Raises:
        RequestError: see `measure_latency`.
    """
    calls = {name: _prepare(path, threads) for name, path in files.items()}
    times: dict[str, npt.NDArray[np.float64]] = {name: np.empty(runs) for name in calls}
    for index in range(-warmup, runs):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if index >= 0:
                times[name][index] = (time.perf_counter() - start) * 1000.0
    base = None if reference is None else times.get(reference)
    return {name: _latency(own, base, threads) for name, own in times.items()}


def _prepare(onnx: Path, threads: int) -> Callable[[], object]:
    """Open a file and return a function that runs it on one image."""
    session = open_session(onnx, threads)
    given = session.get_inputs()[0]
    batch, *sides = given.shape
    if isinstance(batch, int) and batch != 1:
        raise RequestError(f"{onnx}: takes {batch} images at a time; latency is that of one: export with batch 1")
    shape = (1, *(side if isinstance(side, int) else _DEFAULT_SIDE for side in sides))
    dtype = np.float16 if given.type == "tensor(float16)" else np.float32
    feed = {given.name: np.random.default_rng(0).random(shape).astype(dtype)}
    return lambda: session.run(None, feed)


def _latency(times: npt.NDArray[np.float64], base: npt.NDArray[np.float64] | None, threads: int) -> Latency:
    return Latency(
        median_ms=float(np.median(times)),
        p90_ms=float(np.percentile(times, 90)),
        min_ms=float(times.min()),
        ratio=None if base is None else float(np.median(times / base)),
        runs=len(times),
        threads=threads,
    )
