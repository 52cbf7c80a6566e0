from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import RequestError
from kd_vision.data.augment_config import AugmentConfig, HsvGains
from kd_vision.data.dataset import load_split
from kd_vision.data.descriptor import DataDescriptor
from kd_vision.data.loader import LoaderConfig, TrainStream, eval_batches
from kd_vision.data.records import DetectionData
from kd_vision.runtime.images import read_image
from kd_vision.runtime.letterbox import letterbox_image

Make = Callable[[list[tuple[int, int]]], DetectionData]
NOISY = AugmentConfig(close_mosaic=1, mixup=0.3, degrade=0.3, student_noise=True)
STILL = AugmentConfig(
    mosaic=0, scale=0, translate=0, horizontal_flip=0, degrade=0, hsv=HsvGains(hue=0, saturation=0, value=0)
)


def same(one: ImageBatch, other: ImageBatch) -> bool:
    pairs = [
        (one.images, other.images),
        (one.targets.image_index, other.targets.image_index),
        (one.targets.labels, other.targets.labels),
        (one.targets.boxes_xyxy, other.targets.boxes_xyxy),
        (one.labelled, other.labelled),
    ]
    if one.teacher_images is not None and other.teacher_images is not None:
        pairs.append((one.teacher_images, other.teacher_images))
    return one.image_ids == other.image_ids and all(torch.equal(left, right) for left, right in pairs)


def test_any_start_worker_count_and_cache_give_the_same_batches(make_data: Make) -> None:
    data, more = make_data([(64, 48)] * 7), make_data([(48, 64)] * 5)
    config = LoaderConfig(image_size=64, batch_size=3, seed=4, unlabelled_ratio=0.7, cache="ram")
    whole = list(TrainStream(data, more, NOISY, config, epochs=3).batches())
    assert len(whole) == 9
    uncached = TrainStream(data, more, NOISY, replace(config, workers=2, cache="none"), epochs=3)
    rest = list(uncached.batches(start_step=4))
    assert len(rest) == 5
    assert all(same(one, other) for one, other in zip(whole[4:], rest, strict=True))
    other_seed = TrainStream(data, more, NOISY, replace(config, seed=5), epochs=3).batch_at(0)
    assert not same(whole[0], other_seed)


def test_every_epoch_shows_every_image_once_in_another_order(make_data: Make) -> None:
    stream = TrainStream(make_data([(32, 32)] * 10), None, STILL, LoaderConfig(32, 4), epochs=2)
    assert stream.steps_per_epoch == 3
    batches = list(stream.batches())
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    epochs = [sum((batch.image_ids for batch in batches[at : at + 3]), ()) for at in (0, 3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(1, 11))
    assert epochs[0] != epochs[1]


def test_unlabelled_images_follow_the_labelled_ones_and_carry_no_boxes(make_data: Make) -> None:
    data, more = make_data([(32, 32)] * 4), make_data([(32, 32)] * 3)
    stream = TrainStream(data, more, STILL, LoaderConfig(32, 2, unlabelled_ratio=1.5), epochs=2)
    seen = []
    for batch in stream.batches():
        assert batch.labelled.tolist() == [True] * 2 + [False] * 3
        assert batch.targets.image_index.tolist() == [0, 1]
        seen += batch.image_ids[2:]
    # Three unlabelled images a step: each step goes through the three of them once.
    assert [sorted(seen[at : at + 3]) for at in range(0, 12, 3)] == [[1, 2, 3]] * 4


def test_unlabelled_images_alone_can_be_trained_on(make_data: Make) -> None:
    nothing = DetectionData("train", ("a",), (1,), ())
    stream = TrainStream(nothing, make_data([(32, 32)] * 5), STILL, LoaderConfig(32, 2), epochs=1)
    batches = list(stream.batches())
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert not any(bool(batch.labelled.any()) or len(batch.targets) for batch in batches)
    with pytest.raises(RequestError, match="split 'train' holds no images; there is nothing to train on"):
        TrainStream(nothing, None, STILL, LoaderConfig(32, 2), epochs=1)


def test_processes_share_every_step_without_overlap(make_data: Make) -> None:
    data = make_data([(32, 32)] * 9)
    streams = [TrainStream(data, None, STILL, LoaderConfig(32, 2), 1, rank, world_size=2) for rank in range(2)]
    assert [stream.steps_per_epoch for stream in streams] == [3, 3]
    steps = [[batch.image_ids for batch in stream.batches()] for stream in streams]
    together = [one + other for one, other in zip(*steps, strict=True)]
    assert [len(one) for one in steps[0]] == [len(one) for one in steps[1]] == [2, 2, 1]
    # Nine images on two processes: the tenth place shows the first image of the epoch again.
    assert sorted(set(sum(together, ()))) == list(range(1, 10))
    assert len(sum(together, ())) == 10


def test_still_sample_is_the_centred_image_with_its_box(make_data: Make) -> None:
    data = make_data([(64, 32)])
    batch = TrainStream(data, None, STILL, LoaderConfig(64, 1), epochs=20).batch_at(0)
    expected = np.full((64, 64, 3), 114, np.uint8)
    expected[16:48] = read_image(data.images[0].path, 3)
    np.testing.assert_array_equal(batch.images[0].permute(1, 2, 0).numpy(), expected)
    assert batch.targets.boxes_xyxy.tolist() == [[16, 24, 48, 40]]
    assert batch.targets.labels.tolist() == [1]
    assert batch.images.dtype == torch.uint8


def test_crowds_are_no_training_targets_and_boxes_are_cut_to_the_image(make_data: Make) -> None:
    data = make_data([(32, 32)])
    record = replace(
        data.images[0],
        boxes_xyxy=np.array([[0, 0, 32, 32], [-8, 4, 16, 40]], np.float32),
        labels=np.array([0, 1]),
        crowd=np.array([True, False]),
        areas=np.array([1024.0, 864.0]),
    )
    batch = TrainStream(replace(data, images=(record,)), None, STILL, LoaderConfig(32, 1), epochs=20).batch_at(0)
    assert batch.targets.boxes_xyxy.tolist() == [[0, 4, 16, 32]]
    assert batch.targets.labels.tolist() == [1]


def test_mosaic_closes_in_the_last_epochs_but_not_in_a_run_shorter_than_that(make_data: Make) -> None:
    data = make_data([(32, 32)] * 2)
    config = STILL.model_copy(update={"mosaic": 1.0, "close_mosaic": 2})
    long = [len(batch.targets) for batch in TrainStream(data, None, config, LoaderConfig(32, 2), 4).batches()]
    # Still and without mosaic each image keeps exactly its one box.
    assert long[2:] == [2, 2]
    plain = TrainStream(data, None, STILL, LoaderConfig(32, 2), 4)
    opened = TrainStream(data, None, config, LoaderConfig(32, 2), 4)
    short = TrainStream(data, None, config, LoaderConfig(32, 2), 1)
    assert not torch.equal(opened.batch_at(1).images, plain.batch_at(1).images)
    assert torch.equal(opened.batch_at(2).images, plain.batch_at(2).images)
    assert not torch.equal(short.batch_at(0).images, plain.batch_at(0).images)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels(make_data: Make, channels: int) -> None:
    data = make_data([(32, 32)] * 2)
    batch = TrainStream(data, None, AugmentConfig(), LoaderConfig(32, 2, channels=channels), 1).batch_at(0)
    assert batch.images.shape == (2, channels, 32, 32)
    (checked,) = eval_batches(data, 32, 2, channels)
    expected = read_image(data.images[1].path, channels)
    np.testing.assert_array_equal(checked.images[1].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("spoil", ["corrupt", "size"])
def test_bad_image_is_one_clear_line_also_out_of_a_worker(make_data: Make, workers: int, spoil: str) -> None:
    data = make_data([(32, 32)] * 3)
    path = data.images[1].path
    if spoil == "corrupt":
        path.write_bytes(path.read_bytes()[:40])
        message = rf"^{path}: is corrupt"
    else:
        Image.fromarray(np.zeros((8, 16, 3), np.uint8)).save(path)
        message = rf"^{path}: is 16x8, the annotations say 32x32; correct them"
    stream = TrainStream(data, None, STILL, LoaderConfig(32, 2, workers=workers, cache="none"), epochs=1)
    with pytest.raises(RequestError, match=message) as caught:
        list(stream.batches())
    assert "Traceback" not in str(caught.value)
    with pytest.raises(RequestError, match=message):
        list(eval_batches(data, 32, 2, 3, workers))


@pytest.mark.parametrize(("width", "height"), [(640, 480), (33, 100), (1271, 715), (20, 20), (1000, 3)])
def test_letterbox_is_centred_and_inverts_exactly(width: int, height: int) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    square, box = letterbox_image(image, 64)
    assert square.shape == (64, 64, 3)
    inside = np.flatnonzero((square == 0).all(axis=2).any(axis=0))
    rows = np.flatnonzero((square == 0).all(axis=2).any(axis=1))
    assert box.pad_left == inside[0]
    assert box.pad_top == rows[0]
    assert box.scale_x * width == pytest.approx(len(inside))
    assert box.scale_y * height == pytest.approx(len(rows))
    assert 0 <= (64 - len(inside)) - 2 * box.pad_left <= 1
    assert 0 <= (64 - len(rows)) - 2 * box.pad_top <= 1
    frame = np.array([[0, 0, width, height], [width / 4, height / 4, width / 2, height / 2]])
    np.testing.assert_allclose(box.invert(box.apply(frame)), frame, rtol=1e-4, atol=1e-3)


def test_eval_batches_hold_all_images_in_order(make_data: Make) -> None:
    data = make_data([(64, 32), (32, 64), (64, 64)])
    batches = list(eval_batches(data, 32, 2, 3))
    assert [batch.image_ids for batch in batches] == [(1, 2), (3,)]
    first = batches[0]
    assert len(first.letterboxes) == 2
    # Half the size; 16 high in 32: padded by 8.
    assert first.targets.boxes_xyxy.tolist() == [[8, 12, 24, 20], [12, 8, 20, 24]]
    assert first.targets.image_index.tolist() == [0, 1]
    spread = list(eval_batches(data, 32, 2, 3, workers=2))
    assert all(same(one, other) for one, other in zip(batches, spread, strict=True))


def test_no_batch_holds_images_of_two_groups(make_data: Make) -> None:
    data = make_data([(32, 32)] * 8)
    batches = list(eval_batches(data, 32, 2, 3, group=3))
    assert [batch.image_ids for batch in batches] == [(1, 2), (3,), (4, 5), (6,), (7, 8)]
    # Whole groups give the same batches, whichever of them are asked for.
    later = list(eval_batches(replace(data, images=data.images[3:]), 32, 2, 3, group=3))
    assert all(same(one, other) for one, other in zip(batches[2:], later, strict=True))


def test_real_images_take_little_time(real: Callable[[str], DataDescriptor]) -> None:
    data = load_split(real("bccd"), "train")
    stream = TrainStream(data, None, AugmentConfig(), LoaderConfig(256, 16), epochs=20)
    start = time.process_time()
    count = sum(len(stream.batch_at(step)) for step in range(20))
    # About 1.2 ms here; the bound leaves room for a slow machine.
    assert (time.process_time() - start) / count < 0.008
