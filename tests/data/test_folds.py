"""Folds: every image once, alike shares of every class, groups whole."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kd_vision.core.errors import RequestError
from kd_vision.data.dataset import DetectionData, load_split
from kd_vision.data.descriptor import load_descriptor
from kd_vision.data.folds import assign_folds, stratify


@pytest.fixture
def train(squares: Path) -> DetectionData:
    return load_split(load_descriptor(squares), "train")


def sizes(*rows: tuple[int, ...]) -> np.ndarray:
    """Groups as (images, images with each class)."""
    return np.array(rows, np.int64)


def test_a_rare_class_is_spread_before_images_are() -> None:
    """Four images with both classes among twenty of the first alone: one for each of four folds."""
    groups = sizes(*[(1, 1, 1)] * 4, *[(1, 1, 0)] * 20)
    fold_of = stratify(groups, 4, np.random.default_rng(0))
    assert sorted(fold_of[:4].tolist()) == [0, 1, 2, 3]
    assert Counter(fold_of.tolist()) == dict.fromkeys(range(4), 6)


def test_a_large_group_fills_a_fold_and_the_small_ones_share_the_others() -> None:
    fold_of = stratify(sizes((10, 10), *[(1, 1)] * 20), 3, np.random.default_rng(3))
    images = [10 * (fold_of[0] == fold) + int((fold_of[1:] == fold).sum()) for fold in range(3)]
    assert images == [10, 10, 10]


@given(
    arrays(np.int64, st.tuples(st.integers(2, 40), st.integers(1, 4)), elements=st.integers(0, 1)),
    st.integers(2, 6),
    st.integers(0, 9),
)
def test_no_fold_is_empty_and_none_has_two_images_of_a_class_more_than_its_share_allows(
    has_class: np.ndarray, folds: int, seed: int
) -> None:
    folds = min(folds, len(has_class))
    groups = np.concatenate([np.ones((len(has_class), 1), np.int64), has_class], axis=1)
    fold_of = stratify(groups, folds, np.random.default_rng(seed))
    assert set(fold_of.tolist()) == set(range(folds))
    rarest = has_class.sum(axis=0)[has_class.any(axis=0)]
    if rarest.size:  # the class that is dealt first is dealt evenly
        column = int(np.flatnonzero(has_class.any(axis=0))[rarest.argmin()])
        counts = np.bincount(fold_of, weights=has_class[:, column], minlength=folds)
        assert counts.max() - counts.min() <= 1


def test_folds_are_a_function_of_the_seed(train: DetectionData) -> None:
    first, again, other = (assign_folds(train, 3, seed) for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()
    assert Counter(first.tolist()) == {0: 4, 1: 4, 2: 4}


def test_frames_of_a_video_and_copies_of_a_file_stay_together(train: DetectionData) -> None:
    names = [f"street{index % 4}_{index:03}.png" for index in range(12)]
    videos = replace(
        train, images=tuple(replace(image, file_name=name) for image, name in zip(train.images, names, strict=True))
    )
    fold_of = assign_folds(videos, 2, group=r"^(.+)_\d+")
    assert all(len({int(fold_of[index]) for index in range(video, 12, 4)}) == 1 for video in range(4))
    assert Counter(fold_of.tolist()) == {0: 6, 1: 6}
    copies = replace(train, images=train.images + tuple(replace(image, image_id=99) for image in train.images[:1]))
    for seed in range(5):
        fold_of = assign_folds(copies, 12, seed)
        assert fold_of[0] == fold_of[12]


@pytest.mark.parametrize(
    ("folds", "group", "message"),
    [
        (1, None, "--folds: 1 leaves no images for a teacher that has not seen them; give 2 or more"),
        (13, None, "--folds: 13 is more than the 12 labelled images; give at most 12"),
        (
            3,
            r"\.png",
            "--folds: 3 is more than the number of groups that '\\.png' makes of the labelled images, 1; give",
        ),
        (2, "(", "--group: '(' is no regular expression ("),
        (2, "^1", "--group: '^1' matches nothing in 9 of 12 file names, e.g. 0.png; give an expression"),
    ],
)
def test_wrong_folds_are_named(train: DetectionData, folds: int, group: str | None, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        assign_folds(train, folds, group=group)
