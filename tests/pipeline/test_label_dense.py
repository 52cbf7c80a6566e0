"""`label --dense` and training from what it stored, against training with the teacher at hand."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from kd_vision.cli.main import main
from kd_vision.config.load import load_config
from kd_vision.core.errors import RequestError
from kd_vision.core.files import read_json
from kd_vision.core.run_directory import RunDirectory
from kd_vision.knowledge.dense_store import DenseStore
from kd_vision.pipeline.benchmark import benchmark
from kd_vision.pipeline.build import build_parts
from kd_vision.pipeline.check import check, exit_code
from kd_vision.pipeline.data import RunData, build_stream
from kd_vision.pipeline.label_dense import DenseOptions, label_dense
from kd_vision.pipeline.teachers import teacher_input_size
from kd_vision.pipeline.train import train

Write = Callable[..., Path]
IMITATION = "[{loss: class_qfl}, {loss: box_iou}, {loss: box_ld}]"


def made(config: Path, store: Path, *overrides: str, seeds: Sequence[int] = (), **options: Any) -> Path:
    label_dense(config, store, seeds, overrides, options=DenseOptions(device="cpu", **options))
    return store


def logged(run: Path) -> list[dict[str, float]]:
    return [row for row in RunDirectory(run).read_log() if row["split"] == "train"]


def losses(row: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if key.startswith("loss/")}


def grids(config: Path, *overrides: str) -> list[dict[str, Any]]:
    """The teacher's dense predictions on the batches of a run, by step."""
    run = load_config(config, overrides)
    data = RunData(run.data)
    labelled, unlabelled = data.training(run)
    parts = build_parts(run, data)
    size = teacher_input_size(run, parts.teachers)
    stream = build_stream(run, labelled, unlabelled, parts.channels, teacher_size=size)
    (teacher,) = parts.teachers.values()
    return [dict(teacher.signals(batch.as_float(), frozenset({"grid"})).grids) for batch in stream.batches()]


def assert_grids_agree(live: list[dict[str, Any]], stored: list[dict[str, Any]]) -> None:
    for one, other in zip(live, stored, strict=True):
        assert one.keys() == other.keys()
        for branch, grid in one.items():
            kept = grid.logits.sigmoid().amax(-1) > 0.03
            assert kept.any()
            again = other[branch]
            assert torch.equal(again.points_xy, grid.points_xy)
            assert torch.equal(again.strides, grid.strides)
            limits = grid.logits[kept].clamp(-1000, 1000)
            assert float((again.logits[kept] - limits).abs().max()) < 0.02
            sides = (grid.boxes_xyxy - grid.points_xy.repeat(1, 2)).abs()[kept]
            assert float(((again.boxes_xyxy - grid.boxes_xyxy)[kept].abs() / (sides + 1)).max()) < 2**-11
            if (~kept).any():
                assert float(again.logits[~kept].sigmoid().amax()) <= 0.03


def test_a_run_from_the_store_is_the_run_with_the_teacher(tmp_path: Path, write_config: Write) -> None:
    """All terms agree at the first step; the teacher is neither loaded nor run; its numbers are those of the store."""
    config = write_config(distill=IMITATION, train="workers: 1")
    store = made(config, tmp_path / "store")
    from_store = [f"knowledge={store}"]
    parts = build_parts(load_config(config, from_store), RunData(load_config(config).data))
    assert (list(parts.teachers), list(parts.online)) == (["knowledge"], [])
    live = train(config, tmp_path / "live")
    replayed = train(config, tmp_path / "replay", overrides=from_store)
    first, again = logged(live.directory)[0], logged(replayed.directory)[0]
    assert losses(again) == pytest.approx(losses(first), rel=0.03)
    numbers = [read_json(run.directory / "teacher.json") for run in (live, replayed)]
    assert numbers[1]["knowledge"] == numbers[0]["teacher"]


def test_a_stopped_run_resumes_from_the_store(
    tmp_path: Path, write_config: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kd_vision.engine.trainer import Trainer

    config = write_config()
    from_store = [f"knowledge={made(config, tmp_path / 'store')}", "train.checkpoint_every=1"]
    whole = train(config, tmp_path / "whole", overrides=from_store)
    step = Trainer._step

    def dies(self: Trainer, batch: Any) -> None:
        if self.progress.step == 4:
            raise KeyboardInterrupt
        step(self, batch)

    monkeypatch.setattr(Trainer, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut", overrides=from_store)
    monkeypatch.undo()
    cut = train(config, tmp_path / "cut", resume=True, overrides=from_store)
    assert [losses(row) for row in logged(cut.directory)] == [losses(row) for row in logged(whole.directory)]


def test_other_students_and_losses_replay_the_same_store(tmp_path: Path, write_config: Write) -> None:
    """Another architecture without box bins in its recipe, another family, other weights: the config has no teacher."""
    store = made(write_config(), tmp_path / "store")
    plain = write_config(teacher=False).read_text()
    for student, recipe in (
        ("{model: yolo11n}", "imitation"),
        ("{family: torchvision, model: fcos_resnet18_fpn}", "imitation_direct"),
    ):
        config = tmp_path / "other.yaml"
        text = plain.replace("{model: yolov8n}", student)
        config.write_text(f"{text}knowledge: {store}\nallow_weak_teacher: true\n")
        assert [term.loss for term in load_config(config).terms] == [
            term.loss for term in load_config(write_config(distill=recipe)).terms
        ]
        rows = logged(train(config, tmp_path / recipe, overrides=["train.epochs=2"]).directory)
        assert all(value > 0 for key, value in losses(rows[0]).items() if key.startswith("loss/kd/"))


def test_both_branches_of_an_end_to_end_head_are_stored(
    tmp_path: Path, write_config: Write, awake_file: Callable[..., Path]
) -> None:
    config = write_config()
    teacher = f"teacher.weights={awake_file('yolo26n')}"
    store = made(config, tmp_path / "store", teacher)
    live, stored = grids(config, teacher), grids(config, teacher, f"knowledge={store}")
    assert set(live[0]) == {"one_to_many", "one_to_one"}
    assert live[0]["one_to_many"].box_bins is None
    assert_grids_agree(live, stored)


def test_a_larger_view_is_stored_in_the_layout_of_the_teacher(tmp_path: Path, write_config: Write) -> None:
    config = write_config()
    larger = "teacher.image_size=128"
    store = made(config, tmp_path / "store", larger)
    assert DenseStore(store).manifest.stream.sample_size == 128
    live, stored = grids(config, larger), grids(config, larger, f"knowledge={store}")
    assert len(live[0]["one_to_many"].strides) == 4 * (64 + 16 + 4)
    assert_grids_agree(live, stored)
    alone = tmp_path / "alone.yaml"
    taught = f"teacher: {{family: dense_labels, store: {store}}}\ndistill: [{{loss: class_qfl}}]\n"
    alone.write_text(write_config(teacher=False).read_text() + taught)
    assert_grids_agree(live, grids(alone))


def test_unlabelled_images_are_part_of_the_stream(tmp_path: Path, write_config: Write) -> None:
    config = write_config(train="label_fraction: 0.5, unlabelled_ratio: 1")
    store = made(config, tmp_path / "store")
    assert DenseStore(store).step(0).images == 8
    assert_grids_agree(grids(config), grids(config, f"knowledge={store}"))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        (["train.seed=3"], "train.seed 0 (this run: 3)"),
        (["train.epochs=3", "train.batch_size=3"], "train.batch_size 4 (this run: 3); train.epochs 2 (this run: 3)"),
        (["image_size=96"], "image_size 64 (this run: 96); sample_size 64 (this run: 96)"),
        (["augment.mosaic=0.5"], "augment.mosaic 1.0 (this run: 0.5)"),
        (["train.label_fraction=0.5"], "train.label_fraction 1.0 (this run: 0.5); other training images or labels"),
    ],
)
def test_a_run_on_other_batches_is_refused(
    tmp_path: Path, write_config: Write, changes: list[str], difference: str
) -> None:
    config = write_config()
    store = made(config, tmp_path / "store")
    with pytest.raises(RequestError) as caught:
        train(config, tmp_path / "run", overrides=[f"knowledge={store}", *changes])
    assert str(caught.value) == (
        f"{config}: {store} was made for other training batches: {difference}; train as it was made, or make a store "
        f"that fits: `kd-vision label {config} --dense --out ANOTHER_STORE`"
    )


def test_another_teacher_is_refused(tmp_path: Path, write_config: Write, awake_file: Callable[..., Path]) -> None:
    config = write_config()
    store = made(config, tmp_path / "store")
    other = [f"teacher.weights={awake_file('yolov8n')}", f"knowledge={store}"]
    with pytest.raises(RequestError, match=rf"teacher: {store} was labelled by another teacher \(ultralytics yolov8n"):
        train(config, tmp_path / "run", overrides=other)


def test_changed_pixels_stop_the_run(tmp_path: Path, write_config: Write) -> None:
    """Images of as many bytes as before: the hash of the data does not see it, the checksum of the batch does."""
    config = write_config()
    source = load_config(config).data
    shutil.copytree(source.parent, tmp_path / "data")
    own = f"data={tmp_path / 'data' / source.name}"
    for image in (tmp_path / "data" / "train").glob("*.png"):
        cv2.imwrite(str(image.with_suffix(".bmp")), cv2.imread(str(image)))
        image.with_suffix(".bmp").replace(image)  # uncompressed, under the old name
    store = made(config, tmp_path / "store", own)
    for image in (tmp_path / "data" / "train").glob("*.png"):
        content = bytearray(image.read_bytes())
        content[-3000:] = bytes(3000)
        image.write_bytes(content)
    with pytest.raises(RequestError, match=r"step 0: the batch has other pixels than those that the teacher of"):
        train(config, tmp_path / "run", overrides=[own, f"knowledge={store}"])


def test_losses_that_need_more_than_the_grid_are_refused_as_ever(tmp_path: Path, write_config: Write) -> None:
    config = write_config()
    store = made(config, tmp_path / "store")
    alone = tmp_path / "alone.yaml"
    alone.write_text(
        write_config(teacher=False).read_text() + f"knowledge: {store}\ndistill: [{{loss: feature_pkd}}]\n"
    )
    with pytest.raises(RequestError, match=r"needs the signal 'features', which the teacher .* does not provide"):
        train(alone, tmp_path / "run")
    low = [f"knowledge={store}", "distill.1.min_score=0.01"]
    with pytest.raises(RequestError, match=r"min_score: 0.01 is below 0.03.*or label again with --dense --score 0.01"):
        train(config, tmp_path / "run", overrides=low)


def test_feature_losses_come_from_the_model_beside_the_store(tmp_path: Path, write_config: Write) -> None:
    config = write_config(distill="[{loss: class_qfl}, {loss: feature_pkd}]")
    run = load_config(config, [f"knowledge={made(config, tmp_path / 'store')}"])
    assert {term.loss: term.teacher for term in run.terms} == {"class_qfl": "knowledge", "feature_pkd": "teacher"}


def test_the_check_finds_living_terms(tmp_path: Path, write_config: Write) -> None:
    config = write_config(distill=IMITATION)
    store = made(config, tmp_path / "store")
    findings = check(load_config(config, [f"knowledge={store}"]))
    assert exit_code(findings) == 0, findings
    living = [finding.text for finding in findings if finding.topic == "gradients"]
    assert len(living) == 3
    assert all("has a gradient" in text for text in living)
    assert any("provides grid" in finding.text for finding in findings)


def test_a_benchmark_takes_the_store_of_each_seed(
    tmp_path: Path, write_config: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(train="epochs: 1")
    store = tmp_path / "stores"
    arguments = ["label", str(config), "--dense", "--seeds", "0", "1", "--out", str(store), "--device", "cpu"]
    assert main([*arguments, "--workers", "0"]) == 0
    said = capsys.readouterr().out
    assert "3 steps, labelled now: 3" in said
    assert re.search(r"\d MB, \d+ bytes an image", said)
    result = benchmark(config, (0, 1), tmp_path / "bench", [f"knowledge={store}"], with_latency=False, control=False)
    assert [arm.role for arm in result.data.arms] == ["teacher", "plain", "distilled"]
    assert all((tmp_path / "bench" / "distilled" / f"seed{seed}" / "student.pt").is_file() for seed in (0, 1))
    with pytest.raises(RequestError, match=r"holds dense labels of seed0, seed1, and this run has train\.seed 2"):
        train(config, tmp_path / "run", overrides=[f"knowledge={store}", "train.seed=2"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dense", "--split", "train"], "--split: used only without --dense; leave out"),
        (["--split", "train", "--seeds", "0"], "--seeds: used only with --dense; leave out"),
        (["--dense", "--seeds", "1", "1"], "--seeds: give different seeds from 0 up, e.g. 0 1 2; given 1 1"),
        (["--dense", "--score", "2", "--max-points", "0"], "--max-points: 0 is too few; give 1 or more"),
        ([], "which images? give either --images FOLDER or --split NAME"),
    ],
)
def test_wrong_requests_are_told(
    tmp_path: Path, write_config: Write, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["label", str(write_config()), "--out", str(tmp_path / "store"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_a_killed_labelling_goes_on_where_it_was(tmp_path: Path, write_config: Write) -> None:
    """More steps than a shard has, so that a killed process has finished one."""
    config = write_config(train="epochs: 12")
    command = [sys.executable, "-m", "kd_vision.cli.main", "label", str(config), "--dense", "--device", "cpu"]
    command += ["--out", str(tmp_path / "cut")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "cut" / "dense-00000.arrow").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    whole = made(config, tmp_path / "whole")
    made(config, tmp_path / "cut")
    names = {path.name for path in whole.iterdir()}
    assert {path.name for path in (tmp_path / "cut").iterdir()} - {"dense.json.part"} == names
    assert all((tmp_path / "cut" / name).read_bytes() == (whole / name).read_bytes() for name in names)
