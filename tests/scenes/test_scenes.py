"""Synthetic aerial scenes: same bytes for the same seed, boxes that fit, statistics as promised."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kd_vision.core.errors import RequestError
from kd_vision.data.descriptor import load_descriptor
from kd_vision.scenes import CLASSES, MIN_BOX_PX, Scene, SceneConfig, render_scene, scene_seed, write_scenes
from kd_vision.scenes.draw import Brush, Canvas, Pose
from kd_vision.scenes.objects import KINDS, reach
from kd_vision.scenes.scene import Drawn, annotate, draw_plan
from kd_vision.scenes.site import Habits, Placement, Site
from kd_vision.scenes.weather import Weather, develop, sample_weather

REPOSITORY = Path(__file__).parents[2]
HABITS = Habits(1.0, (0.7, 0.1, 0.1, 0.1), 1.0, 1.0, 1.0, 1.0)
NOON = Weather("clear", (0.3, 0.2), 120, 0.2, 1.0, (1.0, 1.0, 1.0), 0.0, 0.0, 0.0, 0.0, 95)


def _tree_hash(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def _write(out: Path, splits: dict[str, int], unlabelled: int = 0, seed: int = 3) -> Path:
    return write_scenes(out, splits, unlabelled, seed, 96, 0.5)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(seed, SceneConfig()) for seed in range(80)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "set"
    _write(out, {"train": 3, "val": 2}, unlabelled=2)
    return out


def _ground_canvas(metres_per_pixel: float = 0.5) -> Canvas:
    """A 64 px canvas with magenta ground; at 0.5 m/px a canvas pixel is exactly 0.25 m."""
    return Canvas(64, 1 / metres_per_pixel, 0.0, (255, 0, 255))


# -- reproducibility ----------------------------------------------------------------------------


def test_same_seed_gives_the_same_bytes_of_every_file(written: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    _write(again, {"train": 3, "val": 2}, unlabelled=2)
    first = _tree_hash(written)
    assert first == _tree_hash(again)
    assert sum(name.endswith(".jpg") for name in first) == 7


def test_same_bytes_in_another_process_with_other_threads_and_hash_seed(written: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    code = (
        "import cv2, sys; from pathlib import Path; cv2.setNumThreads(4);"
        "from kd_vision.scenes import render_scene, SceneConfig, write_scenes;"
        "render_scene(99, SceneConfig());"
        "write_scenes(Path(sys.argv[1]), {'train': 3, 'val': 2}, 2, 3, 96, 0.5)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", code, str(out)], check=True, env=environment, timeout=120)
    assert _tree_hash(out) == _tree_hash(written)


def test_other_seeds_give_other_pictures_and_boxes() -> None:
    first, second = (render_scene(seed, SceneConfig()) for seed in (1, 2))
    assert not np.array_equal(first.image, second.image)
    assert first.boxes_xyxy.tolist() != second.boxes_xyxy.tolist()


def test_scenes_do_not_depend_on_what_else_is_asked_for(written: Path, tmp_path: Path) -> None:
    out = tmp_path / "more"
    _write(out, {"val": 3}, unlabelled=1)
    for name in ("000000.jpg", "000001.jpg"):
        path = Path("images/val") / name
        assert (out / path).read_bytes() == (written / path).read_bytes()
    unlabelled = Path("unlabelled/000000.jpg")
    assert (out / unlabelled).read_bytes() == (written / unlabelled).read_bytes()
    few, more = (json.loads((root / "annotations/val.json").read_text()) for root in (written, out))
    assert few["annotations"] == more["annotations"][: len(few["annotations"])]


def test_scene_seeds_differ_by_seed_split_and_index() -> None:
    seeds = [(0, "train", 0), (1, "train", 0), (0, "val", 0), (0, "train", 1)]
    states = {tuple(scene_seed(*parts).generate_state(4).tolist()) for parts in seeds}
    assert len(states) == 4


def test_negative_seed_of_a_scene_is_refused() -> None:
    with pytest.raises(ValueError):
        render_scene(-1, SceneConfig())


# -- boxes --------------------------------------------------------------------------------------


def test_boxes_lie_in_the_frame_and_keep_the_least_size(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.shape == (256, 256, 3)
        assert scene.image.dtype == np.uint8
        boxes = scene.boxes_xyxy
        assert boxes.dtype == np.float32
        assert scene.labels.dtype == np.int64
        assert len(boxes) == len(scene.labels)
        assert (boxes >= 0).all()
        assert (boxes <= 256).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= MIN_BOX_PX).all()
        assert set(scene.labels.tolist()) <= set(range(len(CLASSES)))


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("seed", range(6))
def test_box_is_as_tight_as_the_paint(name: str, seed: int) -> None:
    """The owner map, from which boxes come, and the picture change in the same rectangle."""
    canvas = Canvas(96, 5.0, 0.4 * seed, (255, 0, 255))
    kind = KINDS[name]
    brush = Brush(canvas, Pose(0.3, -0.2, 0.7 * seed), 1)
    kind.paint(brush, kind.length[1], kind.width[1], np.random.default_rng(seed))
    painted = (canvas.image != (255, 0, 255)).any(axis=2)
    owned = canvas.owners[canvas.margin : -canvas.margin, canvas.margin : -canvas.margin] == 1
    for axis in (0, 1):
        assert np.flatnonzero(painted.any(axis))[[0, -1]].tolist() == np.flatnonzero(owned.any(axis))[[0, -1]].tolist()
    pixels, _ = brush.claimed(reach(kind.length[1], kind.width[1]))
    assert pixels == np.count_nonzero(owned)


@pytest.mark.parametrize(
    ("cover_to", "box"),
    [
        (-8.0, [12.0, 24.0, 52.5, 40.5]),
        (0.0, [32.5, 24.0, 52.5, 40.5]),
        (2.0, [36.5, 24.0, 52.5, 40.5]),
    ],
)
def test_box_is_the_visible_extent(cover_to: float, box: list[float]) -> None:
    """A 20 m x 8 m block from x = -10 to 10 at 0.5 m/px is hidden from its left end up to `cover_to`.

    Ends lie on whole canvas pixels, which polygon fills include: 12 to 52 becomes 12 to 52.5.
    """
    canvas = _ground_canvas()
    brush = Brush(canvas, Pose(0.0, 0.0), 1)
    brush.box(-10, -4, 10, 4, (0, 0, 0), solid=True)
    drawn = Drawn(1, 3, *brush.claimed(11.0))
    if cover_to > -8:
        Brush(canvas, Pose(0.0, 0.0), 0).box(-12, -8, cover_to, 8, (0, 80, 0), solid=True)
    boxes, labels = annotate(canvas, [drawn])
    assert boxes.tolist() == [box]
    assert labels.tolist() == [3]


def test_less_than_a_third_visible_is_not_annotated() -> None:
    canvas = _ground_canvas()
    brush = Brush(canvas, Pose(0.0, 0.0), 1)
    brush.box(-10, -4, 10, 4, (0, 0, 0), solid=True)
    drawn = Drawn(1, 3, *brush.claimed(11.0))
    Brush(canvas, Pose(0.0, 0.0), 0).box(-12, -8, 3.5, 8, (0, 80, 0), solid=True)  # 6.5 of 20 m remain
    assert len(annotate(canvas, [drawn])[0]) == 0


@pytest.mark.parametrize(("x", "count"), [(-12.0, 1), (-18.5, 0)])
def test_part_outside_the_frame_counts_as_hidden(x: float, count: int) -> None:
    """The frame ends at -16 m: of a block of 12 m, 10 m lie inside at x = -12 and 3.5 m at -18.5."""
    canvas = _ground_canvas()
    brush = Brush(canvas, Pose(x, 0.0), 1)
    brush.box(-6, -4, 6, 4, (0, 0, 0), solid=True)
    boxes, _ = annotate(canvas, [Drawn(1, 0, *brush.claimed(8.0))])
    assert len(boxes) == count
    assert all(box[0] == 0.0 for box in boxes.tolist())


def test_what_measures_less_than_four_pixels_is_not_annotated() -> None:
    canvas = _ground_canvas()
    brush = Brush(canvas, Pose(0.0, 0.0), 1)
    brush.box(-6, -0.75, 6, 0.75, (0, 0, 0), solid=True)  # 1.5 m are 3.5 px with the border pixel
    assert len(annotate(canvas, [Drawn(1, 0, *brush.claimed(8.0))])[0]) == 0


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.label is None])
def test_look_alikes_are_drawn_but_not_annotated(name: str) -> None:
    site = Site(Canvas(128, 4.0, 0.0, (90, 120, 70)), np.random.default_rng(0), HABITS)
    before = site.canvas.image.copy()
    site.plan.low += [
        Placement(name, Pose(-6.0, 0.0), *site.size(name)),
        Placement("car", Pose(6.0, 0.0), 4.5, 1.9),
    ]
    drawn = draw_plan(site, NOON)
    left_half = (site.canvas.image != before).any(axis=2)[:, :100]
    assert np.count_nonzero(left_half) > 40
    boxes, labels = annotate(site.canvas, drawn)
    assert labels.tolist() == [CLASSES.index("car")]
    # 4.5 m x 1.9 m at 4 px/m around (64 + 24, 64); polygon fills include the border pixels.
    assert boxes[0] == pytest.approx((79.0, 60.2, 97.0, 67.8), abs=0.75)


def test_things_do_not_stand_in_each_other() -> None:
    site = Site(Canvas(128, 4.0, 0.0, (90, 120, 70)), np.random.default_rng(0), HABITS)
    assert site.put("car", Pose(0.0, 0.0))
    assert not site.put("truck", Pose(2.0, 0.5, 1.0))
    assert site.put("car", Pose(0.0, 4.0))
    assert [thing.pose for thing in site.plan.low] == [Pose(0.0, 0.0), Pose(0.0, 4.0)]


# -- drawing ------------------------------------------------------------------------------------


def test_pose_moves_along_its_heading() -> None:
    pose = Pose(1.0, 2.0, math.pi / 2).move(3.0, 1.0, 0.5)
    assert (pose.x, pose.y, pose.heading) == pytest.approx((0.0, 5.0, math.pi / 2 + 0.5))


def test_shadow_falls_where_the_sun_throws_it() -> None:
    """A 2 m cube of height 3 m with 1 m of shadow per metre along +x darkens x from -1 to 4."""
    canvas = _ground_canvas()
    canvas.sun_offset = (1.0, 0.0)
    canvas.cast([(-1, -1), (1, -1), (1, 1), (-1, 1)], Pose(0.0, 0.0), 3.0, 100)
    columns = np.flatnonzero((canvas.shadow == 100).any(axis=0))
    rows = np.flatnonzero((canvas.shadow == 100).any(axis=1))
    assert columns[[0, -1]].tolist() == [64 - 4, 64 + 16]
    assert rows[[0, -1]].tolist() == [64 - 4, 64 + 4]
    canvas.apply_shadow(0.0)
    assert canvas.image[64, 64].tolist() == [100, 0, 100]
    assert canvas.image[64, 90].tolist() == [255, 0, 255]
    assert (canvas.shadow == 255).all()


# -- statistics ---------------------------------------------------------------------------------


def test_classes_are_imbalanced_as_promised(scenes: list[Scene]) -> None:
    labels = np.concatenate([scene.labels for scene in scenes])
    share = dict(zip(CLASSES, np.bincount(labels, minlength=len(CLASSES)) / len(labels), strict=True))
    assert share["car"] > share["person"] > share["van"] > share["truck"] > share["bus"] > 0.01
    assert 0.45 < share["car"] < 0.7
    assert share["bus"] < 0.05
    assert 0.01 < share["bicycle"] < 0.06


def test_sizes_are_as_promised(scenes: list[Scene]) -> None:
    labels = np.concatenate([scene.labels for scene in scenes])
    boxes = np.concatenate([scene.boxes_xyxy for scene in scenes])
    long_side = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    median = {name: float(np.median(long_side[labels == index])) for index, name in enumerate(CLASSES)}
    assert 6 <= median["person"] <= 9
    assert 10 <= median["bicycle"] <= 14
    assert 18 <= median["car"] <= 23
    assert 23 <= median["van"] <= 29
    assert 33 <= median["truck"] <= 44
    assert 40 <= median["bus"] <= 52


def test_density_and_vehicle_mix_are_obeyed() -> None:
    few, many = (
        sum(len(render_scene(seed, SceneConfig(image_size=160, density=density)).labels) for seed in range(25))
        for density in (0.3, 1.5)
    )
    assert many > 2 * few
    config = SceneConfig(image_size=160, vehicle_mix=(0.0, 0.0, 0.0, 1.0), pedestrians=0, cyclists=0)
    labels = np.concatenate([render_scene(seed, config).labels for seed in range(25)])
    buses = np.count_nonzero(labels == CLASSES.index("bus"))
    assert buses > 25
    assert not np.isin(labels, [CLASSES.index("person"), CLASSES.index("bicycle")]).any()


# -- difficulty ---------------------------------------------------------------------------------


def test_weather_gets_worse_with_difficulty() -> None:
    means = []
    for difficulty in (0.0, 0.5, 1.0):
        drawn = [sample_weather(np.random.default_rng(seed), difficulty) for seed in range(300)]
        means.append(
            {
                "noise": np.mean([weather.noise for weather in drawn]),
                "haze": np.mean([weather.haze for weather in drawn]),
                "blur": np.mean([weather.blur for weather in drawn]),
                "unclear": np.mean([weather.sky != "clear" for weather in drawn]),
                "flatness": -np.mean([weather.contrast for weather in drawn]),
                "artefacts": -np.mean([weather.jpeg_quality for weather in drawn]),
            }
        )
    for key in means[0]:
        assert means[0][key] < means[1][key] < means[2][key], key


def test_contrast_of_pictures_falls_with_difficulty() -> None:
    def contrast(difficulty: float) -> float:
        config = SceneConfig(image_size=160, difficulty=difficulty)
        pictures = (render_scene(seed, config).image for seed in range(50))
        return float(np.mean([cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).std() for picture in pictures]))

    easy, hard = contrast(0.0), contrast(1.0)
    assert hard < 0.85 * easy


@pytest.mark.parametrize("noise", [2.0, 8.0])
def test_sensor_noise_has_the_stated_strength(noise: float) -> None:
    """At mid grey (128) the standard deviation is `noise`; the camera's compression smooths a little."""
    grey: npt.NDArray[np.uint8] = np.full((128, 128, 3), 128, np.uint8)
    weather = Weather("clear", (1.0, 0.0), 120, 0.2, 1.0, (1.0, 1.0, 1.0), 0.0, 0.0, noise, 0.0, 100)
    picture = develop(grey, weather, np.random.default_rng(0)).astype(np.float64)
    luma = picture @ (0.299, 0.587, 0.114)
    # Independent noise per channel: the weighted sum has sqrt(.299^2 + .587^2 + .114^2) of it.
    assert luma.std() == pytest.approx(noise * 0.6686, rel=0.12)
    assert picture.mean() == pytest.approx(128, abs=1)


# -- the set on disk ----------------------------------------------------------------------------


def test_annotations_are_coco(written: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(written / "annotations/train.json"))
        found = [
            {
                "image_id": entry["image_id"],
                "category_id": entry["category_id"],
                "bbox": entry["bbox"],
                "score": 0.9,
            }
            for entry in truth.dataset["annotations"]
        ]
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert [entry["name"] for entry in truth.loadCats(truth.getCatIds())] == list(CLASSES)
    assert evaluation.stats[0] == pytest.approx(1.0)
    ids = [entry["id"] for entry in truth.dataset["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    for image in truth.dataset["images"]:
        picture = cv2.imread(str(written / "images/train" / image["file_name"]))
        assert picture is not None
        assert picture.shape == (image["height"], image["width"], 3) == (96, 96, 3)
    for entry in truth.dataset["annotations"]:
        assert entry["area"] == entry["bbox"][2] * entry["bbox"][3]


def test_written_boxes_are_those_of_the_scene(written: Path) -> None:
    content = json.loads((written / "annotations/train.json").read_text())
    scene = render_scene(scene_seed(3, "train", 1), SceneConfig(image_size=96))
    mine = [entry for entry in content["annotations"] if entry["image_id"] == 2]
    corners = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in mine)]
    assert corners == scene.boxes_xyxy.tolist()
    assert [entry["category_id"] - 1 for entry in mine] == scene.labels.tolist()
    stored = cv2.imread(str(written / "images/train/000001.jpg"))
    assert stored is not None
    difference = np.abs(stored[:, :, ::-1].astype(int) - scene.image)
    assert difference.mean() < 4  # JPEG, and the channels in the right order


def test_descriptors_can_be_read(written: Path) -> None:
    made = load_descriptor(written / "data.yaml")
    assert made.root == written.resolve()
    assert made.classes == CLASSES
    assert made.splits["val"].annotations == str(written.resolve() / "annotations/val.json")
    assert made.unlabelled is not None
    assert made.unlabelled.images == str(written.resolve() / "unlabelled")
    ready = load_descriptor(REPOSITORY / "datasets/aerial_synth.yaml")
    assert ready.classes == CLASSES
    assert set(ready.splits) == {"train", "val", "test"}


def test_progress_counts_every_scene(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = write_scenes(tmp_path / "a", {"val": 2}, 1, 0, 64, 0.0, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert made == tmp_path / "a" / "data.yaml"


def test_an_earlier_set_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "set"
    _write(out, {"train": 2})
    _write(out, {"val": 1})
    assert sorted(path.name for path in (out / "images").iterdir()) == ["val"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("earlier", [False, True])
def test_an_interrupted_run_leaves_nothing_half_written(tmp_path: Path, earlier: bool) -> None:
    out = tmp_path / "set"
    before = {}
    if earlier:
        _write(out, {"train": 1})
        before = _tree_hash(out)

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(out, {"train": 3}, 0, 9, 64, 0.5, interrupt)
    assert [path.name for path in tmp_path.iterdir()] == (["set"] if earlier else [])
    assert _tree_hash(out) == before


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    other = tmp_path / "photos"
    other.mkdir()
    (other / "mine.jpg").write_bytes(b"x")
    with pytest.raises(RequestError) as refused:
        _write(other, {"train": 1})
    assert refused.value.problems == (
        f"{other}: is not empty and was not made by `kd-vision data synth`; give a new or an empty folder",
    )
    assert _tree_hash(other) == {"mine.jpg": hashlib.sha256(b"x").hexdigest()}


def test_a_set_with_foreign_files_is_refused_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "set"
    _write(out, {"train": 1})
    (out / "notes.txt").write_text("keep")
    with pytest.raises(RequestError) as refused:
        _write(out, {"train": 1})
    assert refused.value.problems == (f"{out}: holds more than synthetic scenes (notes.txt); give a new folder",)
    assert (out / "notes.txt").read_text() == "keep"


def test_an_empty_folder_is_filled_and_a_file_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert _write(empty, {"val": 1}).is_file()
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(RequestError, match="is not a plain folder; give a new or an empty one"):
        _write(file, {"val": 1})


def test_all_mistakes_come_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as refused:
        write_scenes(tmp_path / "deep" / "set", {"a/b": 2, "val": 0}, -1, -5, 32, 1.5)
    assert refused.value.problems == (
        "synthetic scenes: 'a/b' cannot name a split; use letters, digits, - and _ (and not 'unlabelled')",
        "synthetic scenes: 0 scenes for split 'val'; give 1 to 1000000",
        "synthetic scenes: -1 unlabelled scenes; give 0 to 1000000",
        "synthetic scenes: seed -5 is negative; give 0 or more",
        "scene: image_size: 32 is out of range; give 64 to 2048 pixels",
        "scene: difficulty: 1.5 is out of range; give 0 to 1",
    )
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_make_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nothing to make"):
        _write(tmp_path / "set", {})


def test_scene_config_says_what_is_right() -> None:
    with pytest.raises(RequestError) as refused:
        SceneConfig(density=9, vehicle_mix=(0, 0, 0, 0), metres_per_pixel=(0.4, 0.2))
    assert refused.value.problems == (
        "scene: density: 9 is out of range; give 0.1 to 3",
        "scene: vehicle_mix: (0, 0, 0, 0) is out of range; give four shares, not all 0",
        "scene: metres_per_pixel: (0.4, 0.2) is out of range; give a range within 0.05 to 0.3",
    )
