"""Things on the ground seen from straight above: the six classes, and what looks like them but is not.

Every painter draws in a local frame: x forward, y to the right, origin in the middle, metres. People
and bicycles are drawn about one and a half times their true size, because at the ground sample
distances used here a true one would be two pixels wide.

What tells the classes apart is deliberately small: a van is a long car without bonnet and rear
window; a truck has a gap between cab and body; a bus has neither gap nor bonnet, but hatches on its
roof; a trailer or a container is a truck body without a cab, and is not an object.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kd_vision.scenes.draw import Brush, Colour, Points, oval, rectangle, shade

CLASSES: tuple[str, ...] = ("car", "van", "truck", "bus", "person", "bicycle")

_GLASS: Colour = (34, 40, 48)
_DARK: Colour = (26, 26, 28)
_RUBBER: Colour = (42, 42, 44)
_PAINTS: tuple[Colour, ...] = (
    (232, 232, 230), (190, 193, 196), (128, 131, 135), (60, 61, 65), (150, 34, 34), (40, 66, 122),
    (92, 110, 128), (188, 172, 142), (52, 86, 62), (206, 148, 40),
)  # fmt: skip
_PAINT_WEIGHTS = np.array([0.25, 0.18, 0.14, 0.15, 0.08, 0.08, 0.05, 0.03, 0.02, 0.02])
_FLEET: tuple[Colour, ...] = (
    (228, 228, 224), (216, 218, 220), (190, 30, 34), (36, 78, 150), (226, 178, 36), (46, 118, 74),
    (160, 164, 170),
)  # fmt: skip
_CLOTHES: tuple[Colour, ...] = (
    (28, 30, 40), (40, 48, 88), (178, 36, 40), (230, 228, 220), (210, 170, 60), (70, 110, 76),
    (120, 116, 112), (206, 104, 40), (110, 60, 110),
)  # fmt: skip
_HAIR: tuple[Colour, ...] = ((38, 28, 22), (84, 60, 38), (168, 140, 92), (20, 20, 22), (214, 210, 204))
_SKIN: Colour = (196, 152, 122)

Painter = Callable[[Brush, float, float, np.random.Generator], None]


@dataclass(frozen=True, slots=True)
class ObjectKind:
    """One sort of thing that stands on the ground.

    Attributes:
        paint: draws it: brush, length and width in metres, random numbers.
        length: range of full lengths, metres.
        width: range of full widths, metres.
        height: metres; its shadow follows from it.
        label: index into `CLASSES`, None for things that are not objects.
        lights: it has headlamps that burn at dusk.
    """

    paint: Painter
    length: tuple[float, float]
    width: tuple[float, float]
    height: float
    label: int | None = None
    lights: bool = False


def outline(kind: ObjectKind, length: float, width: float) -> Points:
    """Return the ground outline used for collisions and shadows."""
    if kind.height < 2.0 and length < 3.0 and kind.label is not None:
        return oval(length * 0.8, width * 0.8, 8)
    return rectangle(-length / 2, -width / 2, length / 2, width / 2)


def beams(length: float, width: float) -> list[list[tuple[float, float]]]:
    """Return the outlines of what the two headlamps light up in front of a vehicle."""
    nose = length / 2
    return [
        [(nose, side), (nose + 4.0, side - 0.9), (nose + 4.0, side + 0.9)] for side in (-0.34 * width, 0.34 * width)
    ]


def paint_lamps(brush: Brush, length: float, width: float) -> None:
    """Draw burning head and rear lamps onto a vehicle."""
    nose = length / 2
    for side in (-0.34 * width, 0.34 * width):
        brush.box(nose - 0.4, side - 0.25, nose, side + 0.25, (255, 250, 226))
        brush.box(-nose, side - 0.22, -nose + 0.28, side + 0.22, (226, 40, 34))


def _pick(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    return colours[int(rng.integers(len(colours)))]


def _paint_colour(rng: np.random.Generator) -> Colour:
    return shade(_PAINTS[int(rng.choice(len(_PAINTS), p=_PAINT_WEIGHTS))], rng.uniform(0.85, 1.1))


def _shell(length: float, width: float, nose: float, tail: float) -> list[tuple[float, float]]:
    """Return a body outline whose ends narrow by these shares of the half width."""
    end, half = length / 2, width / 2
    cut = 0.1 * length if length < 7 else 0.35
    return [
        (-end + cut / 2, -half), (end - cut, -half), (end, -half * (1 - nose)), (end, half * (1 - nose)),
        (end - cut, half), (-end + cut / 2, half), (-end, half * (1 - tail)), (-end, -half * (1 - tail)),
    ]  # fmt: skip


def _band(x0: float, x1: float, half0: float, half1: float) -> list[tuple[float, float]]:
    return [(x0, -half0), (x1, -half1), (x1, half1), (x0, half0)]


def _paint_car(brush: Brush, length: float, width: float, rng: np.random.Generator) -> None:
    colour = _paint_colour(rng)
    half = width / 2
    brush.poly(_shell(length, width, 0.25, 0.15), shade(colour, 0.9), solid=True)
    hatchback = rng.random() < 0.4
    front, roof_front = 0.22 * length, 0.07 * length
    roof_rear = (-0.33 if hatchback else -0.22) * length
    rear = (-0.43 if hatchback else -0.34) * length
    brush.poly(_band(rear, front, 0.8 * half, 0.84 * half), _GLASS)
    brush.poly(_band(roof_rear, roof_front, 0.72 * half, 0.72 * half), shade(colour, 1.08))
    brush.box(front, -0.62 * half, 0.46 * length, 0.62 * half, shade(colour, 1.0))
    if rng.random() < 0.15:
        brush.box(roof_rear + 0.3, -0.4 * half, roof_front - 0.2, 0.4 * half, _GLASS)


def _paint_van(brush: Brush, length: float, width: float, rng: np.random.Generator) -> None:
    colour = shade(_pick(rng, _FLEET[:3]) if rng.random() < 0.6 else _paint_colour(rng), rng.uniform(0.9, 1.05))
    half, end = width / 2, length / 2
    brush.poly(_shell(length, width, 0.2, 0.03), shade(colour, 0.9), solid=True)
    brush.poly(_band(end - 0.3 * length, end - 0.14 * length, 0.86 * half, 0.74 * half), _GLASS)
    brush.box(-end + 0.1, -0.88 * half, end - 0.27 * length, 0.88 * half, shade(colour, 1.04))
    for share in (0.2, 0.4, 0.6):
        x = -end + share * length
        brush.box(x, -0.75 * half, x + 0.13, 0.75 * half, shade(colour, 0.88))
    if rng.random() < 0.25:
        for y in (-0.5 * half, 0.3 * half):
            brush.box(-end + 0.5, y, end - 0.36 * length, y + 0.16, (110, 112, 114))


def _cargo_box(brush: Brush, x0: float, x1: float, half: float, rng: np.random.Generator) -> None:
    """Draw a closed truck body with roof ribs, solid."""
    colour = shade(_pick(rng, _FLEET), rng.uniform(0.85, 1.05))
    brush.box(x0, -half, x1, half, shade(colour, 0.88), solid=True)
    brush.box(x0 + 0.15, -half + 0.15, x1 - 0.15, half - 0.15, colour)
    step = rng.uniform(0.9, 1.6)
    for x in np.arange(x0 + step, x1 - 0.3, step):
        brush.box(x, -half + 0.15, x + 0.12, half - 0.15, shade(colour, 0.9))


def _open_bed(brush: Brush, x0: float, x1: float, half: float, rng: np.random.Generator) -> None:
    """Draw an open truck bed, with or without a load, solid."""
    brush.box(x0, -half, x1, half, (96, 92, 86), solid=True)
    brush.box(x0 + 0.2, -half + 0.2, x1 - 0.2, half - 0.2, (62, 58, 54))
    if rng.random() < 0.7:
        load = _pick(rng, ((134, 108, 74), (150, 146, 138), (88, 66, 48), (168, 168, 162)))
        brush.poly(oval((x1 - x0) * 0.8, half * 1.5, 10, (x0 + x1) / 2), load)
        brush.poly(oval((x1 - x0) * 0.5, half * 0.9, 10, (x0 + x1) / 2 + 0.2), shade(load, 1.2))


def _tank(brush: Brush, x0: float, x1: float, half: float, rng: np.random.Generator) -> None:
    """Draw a tank with a bright ridge, solid."""
    colour = _pick(rng, ((206, 208, 210), (170, 172, 176), (214, 206, 186)))
    for share, factor in ((1.0, 0.62), (0.8, 0.8), (0.5, 0.98), (0.2, 1.15)):
        brush.box(x0, -half * share, x1, half * share, shade(colour, factor), solid=share == 1.0)
    for x in np.linspace(x0 + 0.8, x1 - 0.8, 3):
        brush.disc(float(x), 0.0, 0.35, (84, 86, 88))


def _paint_truck(brush: Brush, length: float, width: float, rng: np.random.Generator) -> None:
    half, end = width / 2, length / 2
    cab = rng.uniform(1.9, 2.5)
    gap = rng.uniform(0.45, 0.8)
    colour = shade(_pick(rng, _FLEET), rng.uniform(0.8, 1.05))
    brush.box(-end + 0.2, -half * 0.55, end - 0.4, half * 0.55, _DARK, solid=True)
    cab_shell = [(end - cab, -0.95 * half), (end - 0.25, -0.95 * half), (end, -0.75 * half),
                 (end, 0.75 * half), (end - 0.25, 0.95 * half), (end - cab, 0.95 * half)]  # fmt: skip
    brush.poly(cab_shell, colour, solid=True)
    brush.poly(_band(end - 0.75, end - 0.2, 0.85 * half, 0.8 * half), _GLASS)
    brush.box(end - cab + 0.2, -0.7 * half, end - 0.85, 0.7 * half, shade(colour, 1.12))
    body = rng.random()
    draw = _cargo_box if body < 0.6 else _open_bed if body < 0.85 else _tank
    draw(brush, -end, end - cab - gap, half, rng)


def _paint_bus(brush: Brush, length: float, width: float, rng: np.random.Generator) -> None:
    colour = shade(_pick(rng, _FLEET[:6]), rng.uniform(0.85, 1.05))
    half, end = width / 2, length / 2
    brush.poly(_shell(length, width, 0.12, 0.06), shade(colour, 0.85), solid=True)
    brush.box(-end + 0.15, -0.86 * half, end - 0.75, 0.86 * half, colour)
    brush.poly(_band(end - 0.55, end - 0.1, 0.9 * half, 0.84 * half), _GLASS)
    stripe = shade(_pick(rng, _FLEET), 0.9)
    if rng.random() < 0.5:
        brush.box(-end + 0.15, -0.2 * half, end - 0.75, 0.2 * half, stripe)
    for x in (-0.2 * length, 0.22 * length):
        brush.box(x - 0.45, -0.45, x + 0.45, 0.45, shade(colour, 0.7))
        brush.box(x - 0.3, -0.3, x + 0.3, 0.3, shade(colour, 1.1))
    pod = rng.choice((-0.36, 0.02)) * length
    brush.box(pod - 0.9, -0.6 * half, pod + 0.9, 0.6 * half, (196, 198, 200))
    brush.box(pod - 0.7, -0.45 * half, pod + 0.7, 0.45 * half, (150, 152, 156))


def _paint_person(brush: Brush, length: float, width: float, rng: np.random.Generator) -> None:
    shirt = shade(_pick(rng, _CLOTHES), rng.uniform(0.85, 1.15))
    trousers = shade(_pick(rng, _CLOTHES), 0.7)
    lean = rng.choice((-1.0, 1.0))
    brush.line((-length / 2, -0.15 * lean * width), (0.0, -0.15 * lean * width), 0.34, trousers, solid=True)
    brush.line((0.0, 0.15 * lean * width), (length / 2, 0.15 * lean * width), 0.34, trousers, solid=True)
    brush.poly(oval(0.6 * length, width, 10), shirt, solid=True)
    for side in (-1, 1):
        brush.disc(0.28 * length * side * lean, 0.42 * width * side, 0.14, _SKIN, solid=True)
    brush.disc(0.08, 0.0, 0.27, _pick(rng, _HAIR))


def _paint_bicycle(brush: Brush, length: float, width: float, rng: np.random.Generator) -> None:
    frame = shade(_pick(rng, _FLEET), 0.8)
    wheel = 0.3 * length
    for x in (-length / 2, length / 2 - wheel):
        brush.line((x, 0.0), (x + wheel, 0.0), 0.26, _RUBBER, solid=True)
    brush.line((-length / 2 + wheel / 2, 0.0), (length / 2 - wheel / 2, 0.0), 0.22, frame, solid=True)
    bar = 0.24 * length
    brush.line((bar, -width / 2), (bar, width / 2), 0.22, _DARK, solid=True)
    brush.box(-0.24 * length, -0.17, -0.1 * length, 0.17, _DARK, solid=True)
    if rng.random() < 0.75:
        shirt = shade(_pick(rng, _CLOTHES), rng.uniform(0.9, 1.2))
        for side in (-1, 1):
            brush.line((0.0, 0.34 * width * side), (bar, 0.38 * width * side), 0.24, _SKIN, solid=True)
        brush.poly(oval(0.9, 0.8 * width, 10, -0.06 * length), shirt, solid=True)
        brush.disc(0.12, 0.0, 0.27, _pick(rng, _HAIR + _FLEET[:3]))


def _paint_trailer(brush: Brush, length: float, width: float, rng: np.random.Generator) -> None:
    half, end = width / 2, length / 2
    brush.line((end - 1.6, 0.0), (end, 0.0), 0.35, _DARK, solid=True)
    draw = _cargo_box if rng.random() < 0.7 else _open_bed
    draw(brush, -end, end - 1.3, half, rng)


def _paint_container(brush: Brush, length: float, width: float, rng: np.random.Generator) -> None:
    colour = _pick(rng, ((142, 62, 44), (44, 84, 120), (60, 104, 80), (158, 130, 60), (130, 134, 138)))
    end, half = length / 2, width / 2
    brush.box(-end, -half, end, half, colour, solid=True)
    for x in np.arange(-end + 0.2, end - 0.1, 0.45):
        brush.box(x, -half + 0.1, x + 0.18, half - 0.1, shade(colour, 0.84))


def _paint_dumpster(brush: Brush, length: float, width: float, rng: np.random.Generator) -> None:
    colour = _pick(rng, ((44, 78, 58), (58, 62, 68), (46, 70, 112), (128, 70, 40)))
    end, half = length / 2, width / 2
    brush.box(-end, -half, end, half, shade(colour, 0.8), solid=True)
    brush.box(-end + 0.2, -half + 0.2, -0.08, half - 0.2, shade(colour, 1.2))
    inside = shade(colour, 1.2) if rng.random() < 0.5 else _DARK
    brush.box(0.08, -half + 0.2, end - 0.2, half - 0.2, inside)


def _paint_pole(brush: Brush, length: float, width: float, rng: np.random.Generator) -> None:
    brush.line((0.0, 0.0), (length, 0.0), 0.24, (150, 152, 152), solid=True)
    brush.disc(0.0, 0.0, width / 2, (120, 120, 120), solid=True)
    brush.poly(oval(0.9, 0.45, 8, length), (196, 196, 190), solid=True)


def _paint_bush(brush: Brush, length: float, width: float, rng: np.random.Generator) -> None:
    green = shade(_pick(rng, ((58, 82, 42), (76, 96, 50), (50, 70, 46), (96, 92, 54))), rng.uniform(0.8, 1.2))
    brush.poly(oval(length, width, 9), shade(green, 0.8), solid=True)
    for _ in range(4):
        x, y = rng.uniform(-0.28, 0.28, 2) * (length, width)
        brush.disc(float(x), float(y), 0.16 * length, shade(green, rng.uniform(0.9, 1.4)))


def _paint_bench(brush: Brush, length: float, width: float, rng: np.random.Generator) -> None:
    wood = shade((132, 98, 64), rng.uniform(0.7, 1.2))
    for y in (-0.34, 0.0, 0.34):
        brush.line((-length / 2, y * width), (length / 2, y * width), 0.24, wood, solid=True)


def _paint_rack(brush: Brush, length: float, width: float, rng: np.random.Generator) -> None:
    steel = shade((150, 154, 158), rng.uniform(0.6, 1.1))
    for x in np.arange(-length / 2, length / 2 + 0.1, 0.8):
        brush.line((float(x), -width / 2), (float(x), width / 2), 0.16, steel)
    brush.line((-length / 2, 0.0), (length / 2, 0.0), 0.14, shade(steel, 0.7))


def _paint_moped(brush: Brush, length: float, width: float, rng: np.random.Generator) -> None:
    cloth = shade(_pick(rng, _CLOTHES), 0.9)
    brush.poly(oval(length, 0.6 * width, 10), cloth, solid=True)
    brush.box(-0.3 * length, -0.5 * width, 0.0, 0.5 * width, shade(cloth, 1.15), solid=True)


def _paint_parasol(brush: Brush, length: float, width: float, rng: np.random.Generator) -> None:
    colour = _pick(rng, _FLEET)
    rim = oval(length, length, 8)
    for index in range(8):
        ray = shade(colour, 1.0 if index % 2 else 0.8)
        brush.poly(np.array([(0.0, 0.0), rim[index], rim[(index + 1) % 8]]), ray, solid=True)
    if width < length * 0.9:
        brush.disc(0.0, 0.0, 0.2, _DARK)


def _paint_bale(brush: Brush, length: float, width: float, rng: np.random.Generator) -> None:
    straw = shade((190, 164, 96), rng.uniform(0.8, 1.1))
    brush.box(-length / 2, -width / 2, length / 2, width / 2, straw, solid=True)
    brush.box(-length / 2, -0.12 * width, length / 2, 0.12 * width, shade(straw, 1.15))


def _paint_patch(brush: Brush, length: float, width: float, rng: np.random.Generator) -> None:
    """Draw fresh tar or a stain: the size of a car, but flat."""
    tone = int(rng.uniform(44, 80))
    brush.poly(oval(length, width, 5 if rng.random() < 0.5 else 9), (tone, tone, tone + 3))


def _paint_arrow(brush: Brush, length: float, width: float, rng: np.random.Generator) -> None:
    white = (206, 206, 200)
    end = length / 2
    brush.box(-end, -0.1, end - 1.0, 0.1, white)
    brush.poly([(end - 1.2, -width / 2), (end, 0.0), (end - 1.2, width / 2)], white)
    if rng.random() < 0.4:
        brush.line((-0.3, 0.0), (0.6, width / 2), 0.2, white)


KINDS: dict[str, ObjectKind] = {
    "car": ObjectKind(_paint_car, (3.8, 4.9), (1.75, 1.95), 1.5, CLASSES.index("car"), True),
    "van": ObjectKind(_paint_van, (4.9, 6.2), (1.95, 2.15), 2.4, CLASSES.index("van"), True),
    "truck": ObjectKind(_paint_truck, (7.0, 10.6), (2.35, 2.6), 3.4, CLASSES.index("truck"), True),
    "bus": ObjectKind(_paint_bus, (9.2, 11.6), (2.45, 2.65), 3.1, CLASSES.index("bus"), True),
    "person": ObjectKind(_paint_person, (1.4, 1.7), (1.3, 1.55), 1.7, CLASSES.index("person")),
    "bicycle": ObjectKind(_paint_bicycle, (2.5, 2.9), (1.3, 1.45), 1.5, CLASSES.index("bicycle")),
    "trailer": ObjectKind(_paint_trailer, (5.5, 9.0), (2.3, 2.6), 3.2),
    "container": ObjectKind(_paint_container, (5.9, 6.2), (2.4, 2.5), 2.6),
    "dumpster": ObjectKind(_paint_dumpster, (2.6, 4.2), (1.6, 2.0), 1.4),
    "pole": ObjectKind(_paint_pole, (1.2, 2.0), (0.6, 0.8), 5.0),
    "bush": ObjectKind(_paint_bush, (1.0, 1.9), (0.9, 1.7), 0.8),
    "bench": ObjectKind(_paint_bench, (1.7, 2.4), (0.7, 0.9), 0.5),
    "rack": ObjectKind(_paint_rack, (2.4, 5.0), (1.4, 1.7), 0.4),
    "moped": ObjectKind(_paint_moped, (2.0, 2.6), (0.9, 1.1), 1.0),
    "parasol": ObjectKind(_paint_parasol, (2.2, 3.2), (2.2, 3.2), 2.2),
    "bale": ObjectKind(_paint_bale, (1.4, 2.6), (1.2, 1.4), 1.2),
    "patch": ObjectKind(_paint_patch, (2.5, 5.0), (1.3, 2.2), 0.0),
    "arrow": ObjectKind(_paint_arrow, (3.0, 4.5), (0.9, 1.3), 0.0),
}


def reach(length: float, width: float) -> float:
    """Return how far the strokes of a thing can lie from its middle, metres."""
    return math.hypot(length, width) / 2 + 0.3
