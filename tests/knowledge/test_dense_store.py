"""Stores of dense labels: what is written is read, and what is damaged or does not fit is refused."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_vision.core.batch import ImageBatch
from kd_vision.core.dense_labels import DenseLabels
from kd_vision.core.errors import RequestError
from kd_vision.core.spec import DetectorSpec
from kd_vision.knowledge.dense_manifest import (
    FORMAT_VERSION,
    DenseManifest,
    StreamNote,
    dense_folder,
    read_dense_manifest,
)
from kd_vision.knowledge.dense_shard import DenseShard, StoredStep, encode
from kd_vision.knowledge.dense_store import (
    DenseReplay,
    DenseStore,
    DenseWriter,
    image_checksum,
    layout_bytes,
    read_layout,
)
from kd_vision.knowledge.manifest import TeacherNote, read_manifest
from kd_vision.teachers.dense_labels import GridLayout

IMAGES, CLASSES, BINS, STEPS = 4, 3, 16, 6
LAYOUT = GridLayout(
    torch.stack([torch.arange(20.0) * 8 + 4, torch.arange(20.0) * 4], dim=-1), torch.tensor([8.0] * 16 + [16.0] * 4)
)
ROWS = len(LAYOUT.strides)
SPEC = DetectorSpec("test", "large", ("a", "b", "c"), {}, {"P3": 8, "P4": 16}, frozenset({"grid"}), box_bins=BINS)
STREAM = StreamNote(
    data=("d",), image_size=64, sample_size=64, channels=3, devices=1,
    train={"batch_size": 4, "seed": 0}, augment={"mosaic": 1.0, "hsv": {"hue": 0.1}},
)  # fmt: skip


def labels(seed: int, count: int = 30, bins: int | None = BINS) -> DenseLabels:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    rows = torch.randperm(IMAGES * ROWS, generator=generator)[:count].sort().values
    return DenseLabels(
        rows, 3 * noise(count, CLASSES), 40 * noise(count, 4).abs(), noise(2, CLASSES) - 6,
        None if bins is None else (4 * noise(count, 4, bins)).log_softmax(-1),
        None if bins is None else noise(2, 4, bins).log_softmax(-1),
    )  # fmt: skip


def batch(seed: int) -> ImageBatch:
    pixels = torch.randint(
        0, 256, (IMAGES, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    return ImageBatch.of_images(pixels, range(IMAGES), [])


def stored(step: int) -> StoredStep:
    return StoredStep(image_checksum(batch(step)), IMAGES, {"one_to_many": labels(step)})


def manifest(**changes: Any) -> DenseManifest:
    note = TeacherNote(fingerprint="f" * 64, description="yolov8s teacher.pt")
    whole = DenseManifest(
        format_version=FORMAT_VERSION, teacher=note, spec=SPEC, stream=STREAM, score_threshold=0.03, max_points=100,
        versions={"numpy": "1.0"}, layout_sha256=hashlib.sha256(layout_bytes(LAYOUT)).hexdigest(), head_rows=ROWS,
        steps=STEPS, shard_steps=4,
    )  # fmt: skip
    return whole.model_copy(update=changes)


def begin(folder: Path, **changes: Any) -> DenseWriter:
    return DenseWriter(folder, manifest(**changes), layout_bytes(LAYOUT))


def finish(writer: DenseWriter) -> DenseStore:
    for shard in writer.missing:
        writer.write(shard, [stored(step) for step in writer.manifest.span(shard)])
    return DenseStore(writer.folder)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(("bins", "counts"), [(BINS, (30, 1)), (None, (30, 0)), (BINS, (80, 0))])
def test_a_shard_gives_back_what_was_stored(tmp_path: Path, bins: int | None, counts: Sequence[int]) -> None:
    """Logits to 1/64, sides to 2^-11 of their size, a bin's log-probability l to 1/15 of 1/2 - l."""
    steps = [
        StoredStep(7 * n, IMAGES, {"one_to_many": labels(n, count, bins), "one_to_one": labels(n + 9, count, bins)})
        for n, count in enumerate(counts)
    ]
    (tmp_path / "s.arrow").write_bytes(encode(steps, ROWS))
    shard = DenseShard(tmp_path / "s.arrow", ROWS, CLASSES, bins)
    for position in (1, 0):
        read, wrote = shard.step(position), steps[position]
        assert (read.checksum, read.images, list(read.branches)) == (7 * position, IMAGES, list(wrote.branches))
        for branch, one in wrote.branches.items():
            other = read.branches[branch]
            assert torch.equal(other.rows, one.rows)
            assert torch.allclose(other.logits, one.logits, atol=1 / 64 + 1e-6)
            assert torch.allclose(other.sides, one.sides, rtol=2**-11, atol=1e-6)
            assert torch.allclose(other.background_logits, one.background_logits, atol=0.01)
            if one.box_bins is None or one.background_bins is None:
                assert other.box_bins is None
                continue
            assert other.box_bins is not None
            assert ((other.box_bins - one.box_bins).abs() < (0.5 - one.box_bins) / 15).all()
            assert other.background_bins is not None
            assert torch.allclose(other.background_bins, one.background_bins, atol=0.01)


def test_equal_labels_give_equal_files() -> None:
    assert encode([stored(0), stored(1)], ROWS) == encode([stored(0), stored(1)], ROWS)


def test_a_stopped_store_goes_on_and_is_the_same(tmp_path: Path) -> None:
    whole = finish(begin(tmp_path / "whole"))
    first = begin(tmp_path / "cut")
    first.write(0, [stored(step) for step in first.manifest.span(0)])
    with pytest.raises(RequestError, match=r"cut: holds 4 of 6 steps; to finish it, run the same `kd-vision label`"):
        DenseStore(tmp_path / "cut")
    second = begin(tmp_path / "cut")
    assert (second.kept, second.missing) == (4, [1])
    finish(second)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert whole.step(5).checksum == stored(5).checksum


@pytest.mark.parametrize("damage", ["torn", "changed", "gone"])
def test_a_damaged_file_is_found_and_written_again(tmp_path: Path, damage: str) -> None:
    finish(begin(tmp_path / "store"))
    path = tmp_path / "store" / "dense-00001.arrow"
    before = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(before[:-20] if damage == "torn" else before[:200] + b"x" + before[201:])
    message = "is missing" if damage == "gone" else "is damaged"
    with pytest.raises(RequestError, match=rf"dense-00001\.arrow: {message}.*to write it again, run the same"):
        DenseStore(tmp_path / "store")
    again = begin(tmp_path / "store")
    assert again.missing == [1]
    finish(again)
    assert path.read_bytes() == before


def test_a_damaged_layout_is_found(tmp_path: Path) -> None:
    store = finish(begin(tmp_path / "store"))
    assert torch.equal(read_layout(store.path, store.manifest).points_xy, LAYOUT.points_xy)
    (store.path / "layout.npz").write_bytes(b"x")
    with pytest.raises(RequestError, match=r"layout\.npz: is damaged"):
        read_layout(store.path, store.manifest)


def test_another_stream_or_teacher_needs_another_folder(tmp_path: Path) -> None:
    begin(tmp_path / "store")
    stream = STREAM.model_copy(update={"train": {"batch_size": 4, "seed": 1}, "augment": {"mosaic": 0.5}})
    teacher = TeacherNote(fingerprint="e" * 64, description="other")
    with pytest.raises(RequestError) as caught:
        begin(tmp_path / "store", stream=stream, teacher=teacher, score_threshold=0.1)
    assert str(caught.value) == (
        f"{tmp_path / 'store'}: was begun with train.seed 0 (this run: 1); augment.mosaic 1.0 (this run: 0.5); "
        "augment.hsv {'hue': 0.1} (this run: None); another teacher (yolov8s teacher.pt ffffffffffff; now "
        "eeeeeeeeeeee); score_threshold 0.03 (this run: 0.1); use another --out"
    )


def test_a_folder_of_other_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match="exists and is no store of dense labels; give another --out"):
        begin(tmp_path)


def test_every_step_of_the_stream_gets_its_labels(tmp_path: Path) -> None:
    store = finish(begin(tmp_path / "store"))
    store.step(0)
    replay = pickle.loads(pickle.dumps(DenseReplay({"t": store}, keep_view=False, versions={})))
    for step in (5, 0, 3):
        seen = replay(step, batch(step))
        assert torch.equal(seen.dense_labels["t"]["one_to_many"].rows, labels(step).rows)


def test_the_view_of_the_teacher_is_checked_and_kept_where_another_needs_it(tmp_path: Path) -> None:
    store = finish(begin(tmp_path / "store"))
    seen = replace(batch(77), teacher_images=batch(2).images)
    assert DenseReplay({"t": store}, keep_view=False, versions={})(2, seen).teacher_images is None
    assert DenseReplay({"t": store}, keep_view=True, versions={})(2, seen).teacher_images is not None


@pytest.mark.parametrize(
    ("versions", "cause"),
    [({"numpy": "1.0"}, "an image file has changed since"), ({"numpy": "2.0"}, "made with numpy 1.0, now 2.0")],
)
def test_other_pixels_are_an_error(tmp_path: Path, versions: dict[str, str], cause: str) -> None:
    store = finish(begin(tmp_path / "store"))
    with pytest.raises(RequestError) as caught:
        DenseReplay({"t": store}, keep_view=False, versions=versions)(2, batch(3))
    assert str(caught.value) == (
        f"step 2: the batch has other pixels than those that the teacher of {store.path} saw ({cause}); label again "
        "into another --out"
    )


def test_a_folder_of_several_seeds_is_read_by_seed(tmp_path: Path) -> None:
    for seed in (0, 2):
        begin(tmp_path / f"seed{seed}")
    assert dense_folder(tmp_path, 2) == tmp_path / "seed2"
    assert dense_folder(tmp_path / "seed0", 2) == tmp_path / "seed0"  # refused by its stream
    with pytest.raises(RequestError, match=r"holds dense labels of seed0, seed2, and this run has train\.seed 1"):
        dense_folder(tmp_path, 1)


def test_the_two_kinds_of_stores_are_told_apart(tmp_path: Path) -> None:
    begin(tmp_path / "dense")
    with pytest.raises(RequestError, match="holds dense labels of training batches; give it as family: dense_labels"):
        read_manifest(tmp_path / "dense")
    (tmp_path / "boxes").mkdir()
    (tmp_path / "boxes" / "manifest.json").write_text("{}")
    with pytest.raises(RequestError, match="holds final boxes of images; give it as family: store"):
        read_dense_manifest(tmp_path / "boxes")
    with pytest.raises(RequestError, match=r"is no store of dense labels \(no dense\.json\)"):
        read_dense_manifest(tmp_path)
    (tmp_path / "dense" / "dense.json").write_text('{"format_version": 9}')
    with pytest.raises(RequestError, match="is of format version 9, this kd_vision reads 2; label again"):
        read_dense_manifest(tmp_path / "dense")
