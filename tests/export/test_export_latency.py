from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from kd_vision.core.errors import RequestError
from kd_vision.export.latency import measure_in_turn, measure_latency


def write_graph(path: Path, batch: int | str, repeats: int = 1) -> Path:
    sides = [batch, 3, 64, 64]
    nodes = [helper.make_node("Sin", [f"x{index}"], [f"x{index + 1}"]) for index in range(repeats)]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info(f"x{repeats}", TensorProto.FLOAT, sides)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.mark.parametrize("batch", [1, "batch"])
def test_numbers_are_ordered_and_say_how(batch: int | str, tmp_path: Path) -> None:
    latency = measure_latency(write_graph(tmp_path / "a.onnx", batch), runs=15, warmup=2)
    assert 0.0 < latency.min_ms <= latency.median_ms <= latency.p90_ms
    assert (latency.runs, latency.threads) == (15, 1)


def test_more_work_takes_longer(tmp_path: Path) -> None:
    little = measure_latency(write_graph(tmp_path / "a.onnx", 1), runs=15, warmup=2)
    much = measure_latency(write_graph(tmp_path / "b.onnx", 1, repeats=60), runs=15, warmup=2)
    assert much.min_ms > 5 * little.min_ms


def test_more_than_one_image_at_a_time_is_refused(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "a.onnx", 4)
    with pytest.raises(RequestError) as caught:
        measure_latency(path)
    assert str(caught.value) == f"{path}: takes 4 images at a time; latency is that of one: export with batch 1"


def test_several_files_are_timed_in_turn_and_compared(tmp_path: Path) -> None:
    files = {"plain": write_graph(tmp_path / "a.onnx", 1), "slow": write_graph(tmp_path / "b.onnx", 1, repeats=60)}
    timed = measure_in_turn(files, runs=15, warmup=2, reference="plain")
    assert list(timed) == ["plain", "slow"]
    assert timed["plain"].ratio == 1.0
    assert timed["slow"].ratio > 5
    assert measure_in_turn(files, runs=3, warmup=0)["slow"].ratio is None
    assert measure_in_turn({}) == {}
