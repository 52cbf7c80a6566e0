"""How long one image takes on the CPU, measured plainly."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

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
    session = open_session(onnx, threads)
    given = session.get_inputs()[0]
    batch, *sides = given.shape
    if isinstance(batch, int) and batch != 1:
        raise RequestError(f"{onnx}: takes {batch} images at a time; latency is that of one: export with batch 1")
    shape = (1, *(side if isinstance(side, int) else _DEFAULT_SIDE for side in sides))
    dtype = np.float16 if given.type == "tensor(float16)" else np.float32
    image = np.random.default_rng(0).random(shape).astype(dtype)
    feed = {given.name: image}
    for _ in range(warmup):
        session.run(None, feed)
    times = np.empty(runs)
    for index in range(runs):
        start = time.perf_counter()
        session.run(None, feed)
        times[index] = (time.perf_counter() - start) * 1000.0
    return Latency(
        median_ms=float(np.median(times)),
        p90_ms=float(np.percentile(times, 90)),
        min_ms=float(times.min()),
        runs=runs,
        threads=threads,
    )
