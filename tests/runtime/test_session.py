"""Execution providers. The graphs themselves are tested with the detector and with the output formats."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from kd_vision.core.errors import RequestError
from kd_vision.runtime.session import open_session, resolve_providers


@pytest.fixture
def two_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    available = ["CUDAExecutionProvider", "CPUExecutionProvider", "DmlExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)


@pytest.mark.usefixtures("two_providers")
def test_short_and_full_names_in_the_order_of_preference() -> None:
    assert resolve_providers(("CUDA", "cpu")) == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert resolve_providers(("DmlExecutionProvider",)) == ["DmlExecutionProvider"]


@pytest.mark.usefixtures("two_providers")
def test_unknown_and_unavailable_providers_are_refused_all_at_once() -> None:
    with pytest.raises(RequestError) as caught:
        resolve_providers(("cuda", "tensorrt", "gpu"))
    possible = "possible: cuda, cpu, DmlExecutionProvider"
    assert caught.value.problems == (
        f"providers: 'tensorrt' is not available in this build of onnxruntime; {possible}",
        f"providers: 'gpu' is not available in this build of onnxruntime; {possible}",
    )
    with pytest.raises(RequestError, match="providers: is empty; possible: cuda, cpu"):
        resolve_providers(())


def test_the_file_is_looked_for_before_the_providers(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no\.onnx: does not exist; give an \.onnx file"):
        open_session(tmp_path / "no.onnx", providers=("nonsense",))


def test_telemetry_is_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: calls.append("off"), raising=False)
    path = tmp_path / "a.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(RequestError, match="onnxruntime cannot open it"):
        open_session(path)
    assert calls == ["off"]
    monkeypatch.delattr(onnxruntime, "disable_telemetry_events")
    with pytest.raises(RequestError, match="onnxruntime cannot open it"):
        open_session(path)
