"""One synthetic aerial scene from one seed: picture and boxes.

Annotation rule. An object is annotated with the tight, upright box of its visible extent when at
least `MIN_VISIBLE` of its outline is visible in the frame and the box measures at least
`MIN_BOX_PX` on each side. Tree crowns, bridges and roofs hide what is below them; shadows, haze and
noise hide nothing. The rider belongs to the bicycle and is no person of its own. Trailers without a
cab, containers, dumpsters, covered mopeds, poles, bushes, benches, bicycle racks, parasols, bales,
tar patches, arrows and everything on roofs are not objects.

The same seed and config give the same bytes in every process and with any number of threads: all
random numbers come from one PCG64 stream. Another build of OpenCV or numpy may round differently.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from kd_vision.core.errors import RequestError
from kd_vision.scenes.draw import SUPERSAMPLE, Brush, Bytes, Canvas, Colour, Pose, oval, rectangle, shade
from kd_vision.scenes.layouts import LAYOUT_WEIGHTS, LAYOUTS
from kd_vision.scenes.objects import CLASSES, KINDS, beams, outline, paint_lamps, reach
from kd_vision.scenes.site import Building, Habits, Placement, Road, Site, Tree, earth
from kd_vision.scenes.weather import Weather, develop, sample_weather

MIN_VISIBLE = 0.35
MIN_BOX_PX = 4.0
_ROOFS: tuple[Colour, ...] = (
    (146, 82, 62), (128, 70, 58), (112, 112, 116), (158, 156, 152), (86, 88, 94), (178, 170, 156),
    (104, 92, 82),
)  # fmt: skip
_CROWNS: tuple[Colour, ...] = ((54, 78, 40), (66, 90, 46), (48, 70, 44), (84, 96, 50), (104, 92, 48))


@dataclass(frozen=True, slots=True)
class SceneConfig:
    """What kind of scenes to make.

    Attributes:
        image_size: height and width, pixels.
        difficulty: 0 clear pictures with few look-alikes; 1 bad weather, a poor camera, many trees
            over the roads and many look-alikes.
        density: factor on the number of objects.
        vehicle_mix: relative frequency of car, van, truck and bus; a place may shift it (more
            trucks on a motorway).
        pedestrians: factor on the number of people.
        cyclists: factor on the number of bicycles.
        metres_per_pixel: range of ground sample distances; each scene draws its own.

    Raises:
        RequestError: with one line for every value out of range.
    """

    image_size: int = 256
    difficulty: float = 0.5
    density: float = 1.0
    vehicle_mix: tuple[float, float, float, float] = (0.72, 0.12, 0.1, 0.06)
    pedestrians: float = 1.0
    cyclists: float = 1.0
    metres_per_pixel: tuple[float, float] = (0.19, 0.25)

    def __post_init__(self) -> None:
        low, high = self.metres_per_pixel
        mix = self.vehicle_mix
        rules = (
            (64 <= self.image_size <= 2048, "image_size", self.image_size, "64 to 2048 pixels"),
            (0 <= self.difficulty <= 1, "difficulty", self.difficulty, "0 to 1"),
            (0.1 <= self.density <= 3, "density", self.density, "0.1 to 3"),
            (0 <= self.pedestrians <= 10, "pedestrians", self.pedestrians, "0 to 10"),
            (0 <= self.cyclists <= 10, "cyclists", self.cyclists, "0 to 10"),
            (len(mix) == 4 and min(mix) >= 0 < sum(mix), "vehicle_mix", mix, "four shares, not all 0"),
            (0.05 <= low <= high <= 0.3, "metres_per_pixel", (low, high), "a range within 0.05 to 0.3"),
        )
        wrong = [f"scene: {name}: {value} is out of range; give {right}" for ok, name, value, right in rules if not ok]
        if wrong:
            raise RequestError(*wrong)


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture and its truth.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        boxes_xyxy: (M, 4) float32, pixels of the image.
        labels: (M,) int64, index into `classes`.
        classes: names in label order.
    """

    image: Bytes
    boxes_xyxy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drawn:
    """An object on the canvas: the pixels it had when drawn and their window (x0, y0, x1, y1)."""

    number: int
    label: int
    pixels: int
    window: tuple[int, int, int, int]


def render_scene(seed: int | np.random.SeedSequence, config: SceneConfig) -> Scene:
    """Make one scene.

    Args:
        seed: not negative; the same seed and config give the same scene.
        config: what kind of scene.

    Raises:
        ValueError: the seed is negative.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    weather = sample_weather(rng, config.difficulty)
    pixels_per_metre = 1 / rng.uniform(*config.metres_per_pixel)
    canvas = Canvas(config.image_size, pixels_per_metre, _rotation(rng), earth(rng))
    canvas.sun_offset = weather.sun_offset
    site = Site(canvas, rng, _habits(config))
    names = tuple(LAYOUTS)
    LAYOUTS[names[int(rng.choice(len(names), p=LAYOUT_WEIGHTS))]](site)
    drawn = draw_plan(site, weather)
    clean = cv2.resize(canvas.image, (config.image_size,) * 2, interpolation=cv2.INTER_AREA)
    boxes, labels = annotate(canvas, drawn)
    return Scene(develop(np.asarray(clean, np.uint8), weather, rng), boxes, labels, CLASSES)


def _rotation(rng: np.random.Generator) -> float:
    """Draw the camera's heading: half of the flights follow the streets, the others do not."""
    if rng.random() < 0.5:
        return float(rng.integers(4) * math.pi / 2 + rng.normal(0, 0.1))
    return float(rng.uniform(0, 2 * math.pi))


def _habits(config: SceneConfig) -> Habits:
    return Habits(
        density=config.density,
        vehicle_mix=config.vehicle_mix,
        pedestrians=config.pedestrians,
        cyclists=config.cyclists,
        clutter=0.3 + 1.0 * config.difficulty,
        trees=0.35 + 0.7 * config.difficulty,
    )


def draw_plan(site: Site, weather: Weather) -> list[Drawn]:
    """Draw all that stands on the site, from the ground up; return what may be annotated."""
    canvas, plan = site.canvas, site.plan
    canvas.apply_texture()
    light = weather.shadow_light
    for thing in plan.low:
        kind = KINDS[thing.kind]
        if kind.height > 0:
            canvas.cast(outline(kind, thing.length, thing.width), thing.pose, kind.height, light)
    canvas.apply_shadow(weather.softness * 0.3)
    lamps = _lamps_on(site, weather)
    drawn = [_draw(site, number, thing, lit) for number, (thing, lit) in enumerate(lamps, start=1)]
    _cast_tall(site, light)
    canvas.apply_shadow(weather.softness)
    for building in plan.buildings:
        _draw_building(site, building, weather)
    for road in plan.bridges:
        _draw_bridge(site, road)
    for number, thing in enumerate(plan.on_bridges, start=len(plan.low) + 1):
        if canvas.sees(thing.pose, thing.length):
            drawn.append(_draw(site, number, thing, weather.sky == "dusk"))
    for tree in plan.trees:
        _draw_tree(site, tree, weather)
    return [thing for thing in drawn if thing is not None]


def _lamps_on(site: Site, weather: Weather) -> list[tuple[Placement, bool]]:
    """Decide who drives with lamps on, and light the ground in front of them."""
    low = site.plan.low
    if weather.sky != "dusk":
        return [(thing, False) for thing in low]
    lit = [KINDS[thing.kind].lights and site.rng.random() < 0.6 for thing in low]
    lights = [
        (thing.pose, beam)
        for thing, on in zip(low, lit, strict=True)
        if on
        for beam in beams(thing.length, thing.width)
    ]
    site.canvas.add_light(lights, 80)
    return list(zip(low, lit, strict=True))


def _draw(site: Site, number: int, thing: Placement, lit: bool) -> Drawn | None:
    """Draw one thing; return its record if its kind is annotated."""
    kind = KINDS[thing.kind]
    brush = Brush(site.canvas, thing.pose, number)
    kind.paint(brush, thing.length, thing.width, site.rng)
    if lit and kind.lights:
        paint_lamps(brush, thing.length, thing.width)
    if kind.label is None:
        return None
    pixels, window = brush.claimed(reach(thing.length, thing.width))
    return Drawn(number, kind.label, pixels, window)


def _cast_tall(site: Site, light: int) -> None:
    canvas = site.canvas
    for building in site.plan.buildings:
        half_x, half_y = building.length / 2, building.width / 2
        canvas.cast(rectangle(-half_x, -half_y, half_x, half_y), building.pose, building.height, light)
    for tree in site.plan.trees:
        canvas.cast(oval(2 * tree.radius, 2 * tree.radius), tree.pose, 1.6 * tree.radius, light + 15)
    for road in site.plan.bridges:
        far, half = road.half_length, road.half_width
        canvas.cast(rectangle(-far, -half, far, half), road.pose, 5.0, light)


def _draw_building(site: Site, building: Building, weather: Weather) -> None:
    """Draw a roof, pitched or flat, with what stands on it."""
    rng = site.rng
    brush = Brush(site.canvas, building.pose, 0)
    half_x, half_y = building.length / 2, building.width / 2
    colour = shade(_ROOFS[int(rng.integers(len(_ROOFS)))], rng.uniform(0.85, 1.15))
    brush.box(-half_x, -half_y, half_x, half_y, shade(colour, 0.7), solid=True)
    if building.height < 8.5 and rng.random() < 0.55:
        turned = site.canvas.rotation + building.pose.heading
        # The side of the roof that faces the sun is brighter: light comes against the shadow's way.
        facing = -weather.sun_offset[1] * math.cos(turned) + weather.sun_offset[0] * math.sin(turned)
        bright, dark = shade(colour, 1.12), shade(colour, 0.86)
        brush.box(-half_x, -half_y, half_x, 0.0, dark if facing > 0 else bright)
        brush.box(-half_x, 0.0, half_x, half_y, bright if facing > 0 else dark)
        brush.box(-half_x, -0.12, half_x, 0.12, shade(colour, 0.65))
        for x in np.arange(-half_x + 0.6, half_x, 1.1):
            brush.box(x, -half_y, x + 0.1, half_y, shade(colour, 0.95))
        return
    brush.box(-half_x + 0.35, -half_y + 0.35, half_x - 0.35, half_y - 0.35, colour)
    for _ in range(int(rng.poisson(building.length * building.width / 50 * site.habits.clutter))):
        _roof_clutter(brush, half_x, half_y, rng)


def _roof_clutter(brush: Brush, half_x: float, half_y: float, rng: np.random.Generator) -> None:
    """Draw an air conditioner, a skylight or a row of solar panels: sizes of people, cars and vans."""
    x = rng.uniform(-half_x + 2.2, max(half_x - 2.2, -half_x + 2.3))
    y = rng.uniform(-half_y + 1.2, max(half_y - 1.2, -half_y + 1.3))
    sort = rng.random()
    if sort < 0.45:
        size = rng.uniform(0.4, 0.9)
        brush.box(x - 0.5 * size, y - 0.7 * size, x + 1.3 * size, y + 1.3 * size, (70, 70, 72))
        brush.box(x - size, y - size, x + size, y + size, (190, 192, 192))
        brush.disc(x, y, 0.6 * size, (90, 92, 94))
    elif sort < 0.75:
        brush.box(x - 1.9, y - 0.8, x + 1.9, y + 0.8, (206, 210, 212))
        brush.box(x - 1.7, y - 0.6, x + 1.7, y + 0.6, (72, 88, 102))
    else:
        for step in (-1.3, 0.0, 1.3):
            brush.box(x + step - 0.6, y - 0.9, x + step + 0.6, y + 0.9, (30, 40, 74))


def _draw_bridge(site: Site, road: Road) -> None:
    brush = Brush(site.canvas, road.pose, 0)
    far, half = road.half_length, road.half_width
    brush.box(-far, -half, far, half, (158, 156, 150), solid=True)
    brush.box(-far, -half + 0.6, far, half - 0.6, (104, 104, 108))
    site.dashes(road.pose, 0.0, site.reach)


def _draw_tree(site: Site, tree: Tree, weather: Weather) -> None:
    """Draw a crown: leaf clumps, brighter towards the sun."""
    rng = site.rng
    brush = Brush(site.canvas, Pose(tree.pose.x, tree.pose.y, -site.canvas.rotation), 0)
    green = shade(_CROWNS[int(rng.integers(len(_CROWNS)))], rng.uniform(0.8, 1.2))
    brush.disc(0.0, 0.0, 0.86 * tree.radius, shade(green, 0.7), solid=True)
    length = math.hypot(*weather.sun_offset)
    towards_x, towards_y = -weather.sun_offset[0] / length, -weather.sun_offset[1] / length
    count = int(8 + 5 * tree.radius)
    angles, ranges = rng.uniform(0, 2 * math.pi, count), np.sqrt(rng.uniform(0, 1, count)) * 0.8
    sizes, tones = rng.uniform(0.16, 0.32, count), rng.uniform(0.75, 1.1, count)
    for angle, distance, size, tone in zip(angles, ranges, sizes, tones, strict=True):
        x, y = distance * math.cos(angle), distance * math.sin(angle)
        lit = tone + 0.28 * (x * towards_x + y * towards_y)
        brush.disc(x * tree.radius, y * tree.radius, size * tree.radius, shade(green, lit), solid=True)


def annotate(canvas: Canvas, drawn: list[Drawn]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Apply the annotation rule to what is left of every object.

    Returns:
        boxes_xyxy (M, 4) float32 in final pixels, labels (M,) int64.
    """
    boxes: list[tuple[float, float, float, float]] = []
    labels: list[int] = []
    first, last = canvas.margin, canvas.margin + canvas.side
    owners = canvas.owners
    for thing in drawn:
        x0, y0 = max(first, thing.window[0]), max(first, thing.window[1])
        x1, y1 = min(last, thing.window[2]), min(last, thing.window[3])
        if x1 <= x0 or y1 <= y0:
            continue
        mine = owners[y0:y1, x0:x1] == thing.number
        if np.count_nonzero(mine) < max(1.0, MIN_VISIBLE * thing.pixels):
            continue
        columns, rows = np.flatnonzero(mine.any(axis=0)), np.flatnonzero(mine.any(axis=1))
        box = (
            (x0 + columns[0] - first) / SUPERSAMPLE,
            (y0 + rows[0] - first) / SUPERSAMPLE,
            (x0 + columns[-1] + 1 - first) / SUPERSAMPLE,
            (y0 + rows[-1] + 1 - first) / SUPERSAMPLE,
        )
        if min(box[2] - box[0], box[3] - box[1]) >= MIN_BOX_PX:
            boxes.append(box)
            labels.append(thing.label)
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)
