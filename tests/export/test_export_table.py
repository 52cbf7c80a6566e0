"""The contract of every export format, and formats that are only a line of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kd_vision import export as table
from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import GateError, RequestError
from kd_vision.core.predictions import Detections, PredictOptions
from kd_vision.core.spec import DetectorSpec
from kd_vision.detectors.base import Detector
from kd_vision.detectors.ultralytics.dense import UltralyticsDetector
from kd_vision.export import (
    EXPORTERS,
    ExporterEntry,
    PrecisionEntry,
    exporter_for,
    formats_of,
    load_exporter,
    open_exported,
)
from kd_vision.export.base import ExportConfig, export_detector, refuse_wrong_request
from kd_vision.export.parity import ParityLimits, ParityReport
from kd_vision.pipeline.export import run_export

Lively = Callable[..., UltralyticsDetector]
SIZE = 96
HERE = __name__


@pytest.mark.parametrize("name", EXPORTERS)
class TestEveryFormat:
    def test_its_suffix_leads_to_it(self, name: str) -> None:
        path = Path("a") / f"b{EXPORTERS[name].suffix.upper()}"
        assert name in formats_of(path)
        assert exporter_for(path, name).format == name

    def test_formats_of_a_suffix_share_their_opener(self, name: str) -> None:
        entry = EXPORTERS[name]
        assert {other.opener for other in EXPORTERS.values() if other.suffix == entry.suffix} == {entry.opener}

    def test_each_precision_has_limits_and_is_a_value_of_the_config(self, name: str) -> None:
        exporter = load_exporter(name)
        for precision in exporter.entry.precisions:
            assert isinstance(exporter.limits(precision), ParityLimits)
            assert exporter.config(image_size=SIZE, precision=precision).precision == precision
        assert exporter.config(image_size=SIZE).precision in exporter.entry.precisions

    def test_refuses_before_the_first_forward_pass(self, name: str, lively: Lively, tmp_path: Path) -> None:
        exporter = load_exporter(name)
        detector = lively("yolov8n")
        calls: list[object] = []
        hook = detector.register_forward_pre_hook(lambda *_: calls.append(1))
        with pytest.raises(RequestError) as caught:
            export_detector(exporter, detector, tmp_path / "no" / "a.txt", exporter.config(image_size=100), {})
        hook.remove()
        assert calls == []
        assert [line.split(":")[0] for line in caught.value.problems] == ["--out", "--out", "--image-size"]
        assert list(tmp_path.iterdir()) == []

    def test_refuses_a_folder_in_the_place_of_the_file(self, name: str, lively: Lively, tmp_path: Path) -> None:
        exporter = load_exporter(name)
        out = tmp_path / f"a{exporter.entry.suffix}"
        out.mkdir()
        with pytest.raises(RequestError) as caught:
            refuse_wrong_request(exporter, lively("yolov8n").spec, out, exporter.config(image_size=SIZE))
        assert caught.value.problems == (f"--out: {out} is a folder; give a file name",)

    @pytest.mark.parametrize("precision", ["fp16", "int8"])
    def test_refuses_a_precision_that_it_lacks(self, name: str, precision: str, lively: Lively, tmp_path: Path) -> None:
        exporter = load_exporter(name)
        if precision in exporter.entry.precisions:
            pytest.skip(f"{name} supports {precision}")
        config = exporter.config(image_size=SIZE, precision=precision)
        with pytest.raises(
            RequestError, match=f"--precision: {precision} is not available in this version; possible: "
        ):
            refuse_wrong_request(exporter, lively("yolov8n").spec, tmp_path / f"a{exporter.entry.suffix}", config)

    def test_export_passes_the_gate_opens_and_leaves_nothing_else(
        self, name: str, lively: Lively, tmp_path: Path
    ) -> None:
        exporter = load_exporter(name)
        detector = lively("yolov8n").train()
        out = tmp_path / f"a{exporter.entry.suffix}"
        exported = export_detector(exporter, detector, out, exporter.config(image_size=SIZE), {})
        assert exported.parity.passed
        assert detector.training
        detector.eval()
        assert out in exported.files
        assert sorted(tmp_path.iterdir()) == list(exported.files)
        assert exported.size_bytes == sum(file.stat().st_size for file in exported.files) > 1_000_000
        assert open_exported(out).spec.classes == detector.spec.classes
        if exporter.time is not None:
            assert exporter.time(out).median_ms > 0


def test_unknown_suffix() -> None:
    with pytest.raises(RequestError) as caught:
        exporter_for(Path("a.engine"))
    assert str(caught.value) == "--out: a.engine: no exporter writes '.engine' files; possible: .onnx (onnx)"
    with pytest.raises(RequestError) as caught:
        open_exported(Path("a.engine"))
    assert str(caught.value) == "a.engine: '.engine' is not an exported model; possible: .onnx (onnx)"
    assert formats_of(Path("a.engine")) == ()


def test_unknown_format() -> None:
    with pytest.raises(RequestError, match="--format: 'onx' is unknown; did you mean 'onnx'"):
        exporter_for(Path("a.onnx"), "onx")


# A format that is one line of the table: it stores the state of the detector in two files and predicts with it.


def write_toy(
    detector: Detector,
    path: Path,
    config: ExportConfig,
    provenance: Mapping[str, str],
    calibration: Iterable[ImageBatch] | None,
) -> str:
    """Write the main file, a side file that it names, and a folder."""
    torch.save(detector.state_dict(), path.with_suffix(".weights"))
    path.write_text(path.with_suffix(".weights").name)
    (path.parent / "calibration").mkdir()
    ids = [image_id for batch in calibration or () for image_id in batch.image_ids]
    (path.parent / "calibration" / "ids.txt").write_text(" ".join(map(str, ids)))
    OPENED.detector = detector
    return "toy"


class ToyPredictor:
    """Reads both files; predicts as the detector does, `shift` pixels to the right."""

    detector: Detector
    shift = 0.0

    def __call__(self, path: Path) -> ToyPredictor:
        assert (path.parent / path.read_text()).is_file()
        return self

    @property
    def spec(self) -> DetectorSpec:
        return self.detector.spec

    def predict(self, batch: ImageBatch, options: PredictOptions = PredictOptions()) -> list[Detections]:
        right = torch.tensor([self.shift, 0.0, self.shift, 0.0]).numpy()
        return [replace(one, boxes_xyxy=one.boxes_xyxy + right) for one in self.detector.predict(batch, options)]


OPENED = ToyPredictor()
TOY_LIMITS = ParityLimits(pixels_p99=3.0)


def toy_errors(spec: DetectorSpec, config: ExportConfig) -> list[str]:
    return ["--batch: toys take one image"] if config.batch != 1 else []


def record_toy(path: Path, parity: ParityReport) -> None:
    path.with_suffix(".parity").write_text(parity.model_dump_json())


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ExporterEntry:
    """Add the format `toy` to the table."""
    here = {name: f"{HERE}:{name}" for name in ("write_toy", "toy_errors", "OPENED", "record_toy", "TOY_LIMITS")}
    entry = ExporterEntry(
        suffix=".toy",
        exporter=here["write_toy"],
        config="kd_vision.export.base:ExportConfig",
        check=here["toy_errors"],
        opener=here["OPENED"],
        recorder=here["record_toy"],
        timer=None,
        precisions={
            "fp32": PrecisionEntry("kd_vision.export.parity:FP32_LIMITS"),
            "int8": PrecisionEntry(here["TOY_LIMITS"], calibration_images=5),
        },
        packages=(),
        extra="toy",
        summary="for tests",
    )
    monkeypatch.setitem(table.EXPORTERS, "toy", entry)  # type: ignore[arg-type]
    monkeypatch.setattr(OPENED, "shift", 0.0)
    return entry


@pytest.mark.usefixtures("toy")
class TestToyFormat:
    def test_several_files_and_a_folder_are_written_together(self, student_file: Path, tmp_path: Path) -> None:
        out = tmp_path / "a.toy"
        result = run_export(student_file, out)
        names = ["a.parity", "a.toy", "a.weights", "calibration"]
        assert sorted(file.name for file in tmp_path.iterdir()) == names
        assert result.latency is None
        assert result.size_bytes == sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
        assert ParityReport.model_validate_json((tmp_path / "a.parity").read_text()) == result.parity

    def test_a_refused_export_leaves_the_files_of_before(
        self, student_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.toy").write_text("yesterday")
        monkeypatch.setattr(OPENED, "shift", 2.0)
        with pytest.raises(GateError, match=r"coordinate difference in pixels.*; at most 0\.25 is allowed"):
            run_export(student_file, tmp_path / "a.toy")
        assert [file.name for file in tmp_path.iterdir()] == ["a.toy"]
        assert (tmp_path / "a.toy").read_text() == "yesterday"

    def test_each_precision_has_its_own_limits(
        self, student_file: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two pixels are too many for fp32, see above, and few enough for int8."""
        monkeypatch.setattr(OPENED, "shift", 2.0)
        monkeypatch.setattr(f"{HERE}.TOY_LIMITS", ParityLimits(pixels_p99=3.0, matched_share=0, ap=1))
        result = run_export(student_file, tmp_path / "a.toy", squares, options={"precision": "int8"})
        assert result.parity.pixels_p99 == pytest.approx(2.0, abs=1e-4)

    def test_calibration_images_are_spread_over_the_training_split(
        self, student_file: Path, squares: Path, tmp_path: Path
    ) -> None:
        """Five of twelve images at equal distances: 0, 2.75, 5.5, 8.25 and 11, cut to integers; ids count from 1."""
        run_export(student_file, tmp_path / "a.toy", squares, options={"precision": "int8"})
        assert (tmp_path / "calibration" / "ids.txt").read_text() == "1 3 6 9 12"

    def test_calibration_needs_data(self, student_file: Path, tmp_path: Path) -> None:
        with pytest.raises(RequestError) as caught:
            run_export(student_file, tmp_path / "a.toy", options={"precision": "int8", "batch": 2})
        assert caught.value.problems == (
            "--batch: toys take one image",
            "--data: int8 needs 5 calibration images; give a data descriptor",
        )

    def test_two_formats_of_one_suffix_need_the_name(self, toy: ExporterEntry, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(table.EXPORTERS, "toy8", toy)  # type: ignore[arg-type]
        with pytest.raises(RequestError) as caught:
            exporter_for(Path("a.toy"))
        assert str(caught.value) == "--out: a.toy: the formats toy, toy8 end with '.toy'; choose one by --format"
        assert exporter_for(Path("a.toy"), "toy8").format == "toy8"

    def test_a_missing_package_is_named_with_its_extra(
        self, toy: ExporterEntry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(table.EXPORTERS, "toy", replace(toy, packages=("onnx", "toy_runtime")))  # type: ignore[arg-type]
        with pytest.raises(RequestError) as caught:
            load_exporter("toy")
        assert str(caught.value) == (
            "--format: 'toy' needs the package toy_runtime, which is not installed; pip install kd-vision[toy]"
        )
