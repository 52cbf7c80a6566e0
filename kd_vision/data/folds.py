"""Divides images into folds of like classes, for cross-fitting.

Shapes: N images, G groups of images that stay together, K classes, F folds.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from kd_vision.core.errors import RequestError
from kd_vision.core.fingerprint import file_sha256
from kd_vision.data.records import DetectionData

Counts = npt.NDArray[np.int64]


def assign_folds(data: DetectionData, folds: int, seed: int = 0, group: str | None = None) -> Counts:
    """Return the fold of every image, (N,) from 0.

    Every fold gets about the same number of images, and of images with each class; rare classes are spread first.

    Args:
        data: labelled images.
        folds: F, 2 or more.
        seed: of the order among equals.
        group: regular expression; images whose file names agree in what it matches (in its first group, where it has
            one) stay in one fold, such as the frames of a video. None: only files with equal bytes stay together.

    Raises:
        RequestError: `folds` does not fit the images, or `group` is no expression that matches every name.
    """
    if folds < 2:
        raise RequestError(f"--folds: {folds} leaves no images for a teacher that has not seen them; give 2 or more")
    if folds > len(data):
        raise RequestError(f"--folds: {folds} is more than the {len(data)} labelled images; give at most {len(data)}")
    group_of = _numbered(_same_files(data) if group is None else _matches(data, group))
    groups = int(group_of.max()) + 1
    if folds > groups:
        what = "different files" if group is None else f"groups that '{group}' makes of the labelled images"
        raise RequestError(f"--folds: {folds} is more than the number of {what}, {groups}; give at most {groups}")
    has_class = np.zeros((len(data), len(data.classes)), np.int64)
    for row, image in enumerate(data.images):
        has_class[row, image.labels[~image.crowd]] = 1
    sizes = np.zeros((groups, 1 + len(data.classes)), np.int64)
    np.add.at(sizes, group_of, np.concatenate([np.ones((len(data), 1), np.int64), has_class], axis=1))
    return stratify(sizes, folds, np.random.default_rng(seed))[group_of]


def stratify(sizes: Counts, folds: int, generator: np.random.Generator) -> Counts:
    """Return the fold of every group, (G,), by iterative stratification (Sechidis et al., ECML 2011).

    The class with the fewest images left is dealt out first, its largest groups first, each to the fold that lacks
    most images of the class, then most images. Groups without a class come last. No fold is left empty where there
    are as many groups as folds, as an empty fold lacks most.

    Args:
        sizes: (G, 1 + K) number of images, and of images with each class.
        folds: F.
        generator: of the order among equals.
    """
    missing = np.repeat(sizes.sum(axis=0, keepdims=True) / folds, folds, axis=0)  # (F, 1 + K)
    fold_of = np.full(len(sizes), -1, np.int64)
    shuffled = generator.permutation(len(sizes))
    while (left := shuffled[fold_of[shuffled] < 0]).size:
        in_class = sizes[left, 1:].sum(axis=0)
        column = 0 if not in_class.any() else 1 + int(np.where(in_class > 0, in_class, np.iinfo(np.int64).max).argmin())
        members = left[sizes[left, column] > 0]
        for one in members[np.argsort(-sizes[members, column], kind="stable")]:
            fold = int(np.lexsort((generator.random(folds), -missing[:, 0], -missing[:, column]))[0])
            fold_of[one] = fold
            missing[fold] -= sizes[one]
    return fold_of


def _same_files(data: DetectionData) -> list[str]:
    with ThreadPoolExecutor() as threads:
        return list(threads.map(file_sha256, (image.path for image in data.images)))


def _matches(data: DetectionData, group: str) -> list[str]:
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise RequestError(f"--group: '{group}' is no regular expression ({error}); give e.g. '^[^_]+'") from None
    names = [image.file_name or image.path.name for image in data.images]
    found = [pattern.search(name) for name in names]
    missed = [name for name, match in zip(names, found, strict=True) if match is None]
    if missed:
        raise RequestError(
            f"--group: '{group}' matches nothing in {len(missed)} of {len(names)} file names, e.g. {missed[0]}; give "
            f"an expression that finds the name of a video or place in every file name"
        )
    return [(match.group(1) or "") if pattern.groups else match.group() for match in found if match is not None]


def _numbered(keys: Sequence[Hashable]) -> Counts:
    """Number equal keys alike, from 0 in order of appearance."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], np.int64)
