"""Writes sets of synthetic scenes to disk in COCO format, all or nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kd_vision.core.errors import KDVisionError, RequestError
from kd_vision.data.descriptor import write_descriptor
from kd_vision.scenes.objects import CLASSES
from kd_vision.scenes.scene import Scene, SceneConfig, render_scene

DESCRIPTOR = "data.yaml"
_RECIPE = "synthetic.json"
_UNLABELLED = "unlabelled"
_OURS = frozenset({DESCRIPTOR, _RECIPE, _UNLABELLED, "images", "annotations"})
_MOST = 1_000_000
_JPEG_QUALITY = 95
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

Progress = Callable[[int, int], None]


def write_scenes(
    out: Path, splits: Mapping[str, int], unlabelled: int, seed: int, image_size: int, difficulty: float,
    progress: Progress | None = None,
) -> Path:  # fmt: skip
    """Write a whole data set of synthetic aerial scenes.

    The set holds ``images/<split>/*.jpg``, ``annotations/<split>.json`` (COCO, category ids from 1,
    area of the box), ``unlabelled/*.jpg``, ``data.yaml`` (the descriptor) and ``synthetic.json``
    (the recipe). It appears under its final name only when it is complete. A scene depends on seed,
    split name and its index alone: asking for more scenes, or for other splits, changes none.

    Args:
        out: folder to make. An earlier set made by this function is replaced.
        splits: number of scenes by split, e.g. ``{"train": 600, "val": 100}``.
        unlabelled: number of further scenes without annotations; 0: no such folder.
        seed: not negative.
        image_size: height and width, pixels.
        difficulty: 0 easy to 1 hard, see `SceneConfig`.
        progress: called with (scenes done, scenes in all) after every scene.

    Returns:
        Path of the descriptor.

    Raises:
        RequestError: a value is out of range, or `out` holds something else; nothing is written.
        KDVisionError: an image could not be written.
    """
    out = Path(out)
    config = _checked(out, splits, unlabelled, seed, image_size, difficulty)
    out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        made.chmod(0o755)  # mkdtemp makes private folders; a data set is readable like any other
        _fill(made, dict(splits), unlabelled, seed, config, progress or _quiet)
        _put_in_place(made, out)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return out / DESCRIPTOR


def scene_seed(seed: int, split: str, index: int) -> np.random.SeedSequence:
    """Return the seed of one scene: independent of process, platform and of all other scenes."""
    digest = hashlib.sha256(split.encode()).digest()
    return np.random.SeedSequence((seed, int.from_bytes(digest[:8], "big"), index))


def _checked(
    out: Path, splits: Mapping[str, int], unlabelled: int, seed: int, image_size: int, difficulty: float
) -> SceneConfig:
    """Return the scene config, or raise with every mistake."""
    wrong = list(_foreign(out))
    if not splits and not unlabelled:
        wrong.append("synthetic scenes: nothing to make; give splits, e.g. {'train': 600}, or unlabelled")
    for name, count in splits.items():
        if not _SPLIT_NAME.fullmatch(name) or name == _UNLABELLED:
            wrong.append(
                f"synthetic scenes: '{name}' cannot name a split; use letters, digits, - and _ "
                f"(and not '{_UNLABELLED}')"
            )
        if not 1 <= count <= _MOST:
            wrong.append(f"synthetic scenes: {count} scenes for split '{name}'; give 1 to {_MOST}")
    if not 0 <= unlabelled <= _MOST:
        wrong.append(f"synthetic scenes: {unlabelled} unlabelled scenes; give 0 to {_MOST}")
    if seed < 0:
        wrong.append(f"synthetic scenes: seed {seed} is negative; give 0 or more")
    config = SceneConfig()
    try:
        config = SceneConfig(image_size=image_size, difficulty=difficulty)
    except RequestError as error:
        wrong.extend(error.problems)
    if wrong:
        raise RequestError(*wrong)
    return config


def _foreign(out: Path) -> list[str]:
    """Say why the folder must not be replaced, if so."""
    if not os.path.lexists(out):
        return []
    if out.is_symlink() or not out.is_dir():
        return [f"{out}: is not a plain folder; give a new or an empty one"]
    names = {entry.name for entry in out.iterdir()}
    if not names:
        return []
    if _RECIPE not in names:
        return [f"{out}: is not empty and was not made by `kd-vision data synth`; give a new or an empty folder"]
    others = sorted(names - _OURS)
    if others:
        return [f"{out}: holds more than synthetic scenes ({', '.join(others[:5])}); give a new folder"]
    return []


def _fill(
    root: Path, splits: dict[str, int], unlabelled: int, seed: int, config: SceneConfig, progress: Progress
) -> None:
    total = sum(splits.values()) + unlabelled
    done = 0
    (root / "annotations").mkdir()
    for split, count in splits.items():
        folder = root / "images" / split
        folder.mkdir(parents=True)
        coco = _empty_coco(split, seed, config)
        for index in range(count):
            scene = render_scene(scene_seed(seed, split, index), config)
            _add(coco, scene, _write_image(folder, index, scene))
            done += 1
            progress(done, total)
        text = json.dumps(coco, separators=(",", ":"), sort_keys=True)
        (root / "annotations" / f"{split}.json").write_text(text + "\n", encoding="utf-8")
    if unlabelled:
        (root / _UNLABELLED).mkdir()
    for index in range(unlabelled):
        scene = render_scene(scene_seed(seed, _UNLABELLED, index), config)
        _write_image(root / _UNLABELLED, index, scene)
        done += 1
        progress(done, total)
    recipe = {"seed": seed, "splits": splits, "unlabelled": unlabelled, "image_size": config.image_size,
              "difficulty": config.difficulty}  # fmt: skip
    (root / _RECIPE).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    write_descriptor(root / DESCRIPTOR, _descriptor(recipe))


def _descriptor(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the descriptor; `root` is the folder it lies in, so that the set can be moved."""
    return {
        "format": "coco",
        "root": ".",
        "splits": {
            name: {"images": f"images/{name}", "annotations": f"annotations/{name}.json"} for name in recipe["splits"]
        },
        "classes": list(CLASSES),
        "source": f"made by kd_vision (synthetic aerial scenes, seed {recipe['seed']}, "
        f"difficulty {recipe['difficulty']})",
        "licence": "CC0-1.0",
        "unlabelled": _UNLABELLED if recipe["unlabelled"] else None,
    }


def _empty_coco(split: str, seed: int, config: SceneConfig) -> dict[str, Any]:
    # No date: the same seed has to give the same bytes.
    description = f"kd_vision synthetic aerial scenes, split {split}, seed {seed}, difficulty {config.difficulty}"
    return {
        "info": {"description": description, "version": "1"},
        "licenses": [{"id": 1, "name": "CC0-1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "categories": [{"id": label, "name": name} for label, name in enumerate(CLASSES, start=1)],
        "images": [],
        "annotations": [],
    }


def _add(coco: dict[str, Any], scene: Scene, file_name: str) -> None:
    image_id = len(coco["images"]) + 1
    height, width = scene.image.shape[:2]
    coco["images"].append({"id": image_id, "file_name": file_name, "height": height, "width": width, "license": 1})
    for box, label in zip(scene.boxes_xyxy.tolist(), scene.labels.tolist(), strict=True):
        x0, y0, x1, y1 = box
        coco["annotations"].append(
            {
                "id": len(coco["annotations"]) + 1,
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
            }
        )


def _write_image(folder: Path, index: int, scene: Scene) -> str:
    """Write one image and return its file name."""
    name = f"{index:06d}.jpg"
    picture = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise KDVisionError(f"{folder / name}: OpenCV could not encode the scene as JPEG")
    try:
        (folder / name).write_bytes(data.tobytes())
    except OSError as error:
        raise KDVisionError(f"{folder / name}: cannot be written ({error.strerror})") from None
    return name


def _put_in_place(made: Path, out: Path) -> None:
    """Rename the finished folder; an earlier set steps aside first and is put back if that fails."""
    if not out.exists():
        made.rename(out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    old = aside / "set"
    out.rename(old)
    try:
        made.rename(out)
    except OSError:
        old.rename(out)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _quiet(done: int, total: int) -> None:
    """Report nothing."""
