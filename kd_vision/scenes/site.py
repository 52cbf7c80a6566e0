"""The building site of one scene: paints the ground and decides what stands where.

A layout paints surfaces at once and notes everything that stands upright; `scene.py` draws the
notes from the ground up. An occupancy map in scene metres keeps things apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from kd_vision.scenes.draw import Brush, Canvas, Colour, Points, Pose, cloud_tile, oval, rectangle, row_tile, shade
from kd_vision.scenes.objects import KINDS

PAVED = 1
BUILT = 2
TAKEN = 4
_CELLS_PER_METRE = 4
_WHITE: Colour = (214, 214, 208)
_YELLOW: Colour = (206, 172, 62)
_VEHICLES = ("car", "van", "truck", "bus")


@dataclass(frozen=True, slots=True)
class Habits:
    """How full and how hard a scene is; derived from `SceneConfig`.

    Attributes:
        density: factor on the number of objects.
        vehicle_mix: probability of car, van, truck, bus among vehicles.
        pedestrians: factor on the number of people.
        cyclists: factor on the number of bicycles.
        clutter: factor on the number of look-alikes.
        trees: factor on the number of trees, that is on occlusion.
    """

    density: float
    vehicle_mix: tuple[float, float, float, float]
    pedestrians: float
    cyclists: float
    clutter: float
    trees: float


@dataclass(frozen=True, slots=True)
class Placement:
    """One thing at its place; `kind` is a key of `KINDS`, sizes in metres."""

    kind: str
    pose: Pose
    length: float
    width: float


@dataclass(frozen=True, slots=True)
class Building:
    """A house: length along its heading, width across, height, metres."""

    pose: Pose
    length: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Tree:
    """A crown of this radius, metres."""

    pose: Pose
    radius: float


@dataclass(frozen=True, slots=True)
class Road:
    """A straight road. Lanes are offsets across from the middle, right-hand traffic, metres."""

    pose: Pose
    half_length: float
    half_width: float
    lanes: tuple[float, ...]


@dataclass(slots=True)
class Plan:
    """What stands on the site, in the order in which it was decided."""

    low: list[Placement] = field(default_factory=list)
    buildings: list[Building] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)
    bridges: list[Road] = field(default_factory=list)
    on_bridges: list[Placement] = field(default_factory=list)


class Site:
    """Ground and placement of one scene.

    Args:
        canvas: where the ground is painted.
        rng: random numbers of the scene; every decision draws from it.
        habits: how full and how hard.
    """

    def __init__(self, canvas: Canvas, rng: np.random.Generator, habits: Habits) -> None:
        self.canvas = canvas
        self.rng = rng
        self.habits = habits
        self.plan = Plan()
        self.reach = canvas.half_extent + 6.0
        cells = int(2 * self.reach * _CELLS_PER_METRE) + 1
        self._map = np.zeros((cells, cells), np.uint8)

    # -- ground ---------------------------------------------------------------------------------

    def ground(self, tile_metres: float, strength: float, roughness: float = 0.9) -> None:
        """Give the whole frame a natural texture."""
        far = self.reach
        pose = self._anywhere(turn=self.rng.uniform(0, 6.28))
        outline = rectangle(-3 * far, -3 * far, 3 * far, 3 * far)
        self.canvas.lay_texture(outline, pose, cloud_tile(roughness), tile_metres, strength)

    def surface(self, pose: Pose, outline: Points, colour: Colour, strength: float = 0.18, paved: bool = True) -> None:
        """Paint an area of asphalt or slabs and remember that it is paved."""
        Brush(self.canvas, pose).poly(outline, colour)
        self.canvas.lay_texture(outline, pose, cloud_tile(0.8), 30.0, strength)
        if paved:
            self._mark(pose, outline, PAVED)

    def field(self, pose: Pose, outline: Points, colour: Colour, rows: bool) -> None:
        """Paint a field with or without visible crop rows."""
        rng = self.rng
        Brush(self.canvas, pose).poly(outline, colour)
        # Few different tiles, so that they are made once per process.
        tile = row_tile(int(rng.choice((13, 18, 24))), float(rng.integers(2))) if rows else cloud_tile(0.9)
        self.canvas.lay_texture(outline, pose, tile, 28.0, rng.uniform(0.15, 0.45))

    def road(
        self, pose: Pose, lanes: int, lane_width: float = 3.3, median: float = 0.0, kerb: float = 0.5,
        sidewalk: float = 0.0,
    ) -> Road:  # fmt: skip
        """Paint a straight road through `pose` with its markings.

        Args:
            pose: a point of the middle line and the direction.
            lanes: per direction.
            lane_width: metres.
            median: width of the strip between the directions, metres.
            kerb: asphalt beside the outermost lane, metres.
            sidewalk: width on both sides, metres; 0: none.
        """
        far = 2 * self.reach
        half = median / 2 + lanes * lane_width + kerb
        tone = int(self.rng.uniform(74, 124))
        if sidewalk:
            outer = half + sidewalk
            self.surface(pose, rectangle(-far, -outer, far, outer), (164, 160, 152), 0.14)
        self.surface(pose, rectangle(-far, -half, far, half), (tone, tone, tone + 4))
        self._markings(pose, lanes, lane_width, median)
        offsets = tuple(side * (median / 2 + (lane + 0.5) * lane_width) for side in (1, -1) for lane in range(lanes))
        return Road(pose, far, half, offsets)

    def _markings(self, pose: Pose, lanes: int, lane_width: float, median: float) -> None:
        brush = Brush(self.canvas, pose)
        far = self.reach * 1.2
        edge = median / 2 + lanes * lane_width
        for side in (-1, 1):
            brush.box(-far, side * edge - 0.09, far, side * edge + 0.09, _WHITE)
            for lane in range(1, lanes):
                self.dashes(pose, side * (median / 2 + lane * lane_width), far)
        if median > 0:
            half = median / 2
            brush.box(-far, -half, far, half, (110, 116, 92))
            brush.box(-far, -0.22, far, 0.22, (172, 172, 168))
        elif self.rng.random() < 0.5:
            self.dashes(pose, 0.0, far)
        else:
            colour = _YELLOW if self.rng.random() < 0.4 else _WHITE
            for y in (-0.18, 0.18):
                brush.box(-far, y - 0.07, far, y + 0.07, colour)

    def dashes(self, pose: Pose, across: float, far: float) -> None:
        """Paint a broken line parallel to the heading."""
        brush = Brush(self.canvas, pose)
        for x in np.arange(-far, far, 6.0):
            brush.box(x, across - 0.08, x + 2.6, across + 0.08, _WHITE)

    def crossing(self, pose: Pose, half_width: float) -> None:
        """Paint a zebra crossing over a road whose heading is that of `pose`."""
        brush = Brush(self.canvas, pose)
        for y in np.arange(-half_width + 0.5, half_width - 0.4, 1.1):
            brush.box(-1.5, y, 1.5, y + 0.55, _WHITE)

    # -- things ---------------------------------------------------------------------------------

    def put(self, kind: str, pose: Pose, gap: float = 0.25) -> bool:
        """Place a thing if nothing is in its way; say whether it was placed."""
        length, width = self.size(kind)
        area = rectangle(-length / 2 - gap, -width / 2 - gap, length / 2 + gap, width / 2 + gap)
        if not self.canvas.sees(pose, length) or not self.free(pose, area, TAKEN | BUILT):
            return False
        self._mark(pose, area, TAKEN)
        self.plan.low.append(Placement(kind, pose, length, width))
        return True

    def size(self, kind: str) -> tuple[float, float]:
        """Draw length and width of a thing, metres."""
        what = KINDS[kind]
        return float(self.rng.uniform(*what.length)), float(self.rng.uniform(*what.width))

    def vehicle(self, mix: tuple[float, ...] | None = None) -> str:
        """Draw the kind of the next vehicle, by `mix` or by the habits of the scene."""
        weights = np.asarray(mix or self.habits.vehicle_mix)
        return _VEHICLES[int(self.rng.choice(4, p=weights / weights.sum()))]

    def traffic(self, road: Road, flow: float, mix: tuple[float, ...] | None = None) -> None:
        """Fill the lanes of a road. `flow` 0: a few vehicles; 1: bumper to bumper."""
        rng = self.rng
        for across in road.lanes:
            turn = 0.0 if across > 0 else np.pi
            along = -self.reach + rng.uniform(0, 15)
            mean_gap = (3.0 + 45.0 * (1 - flow) ** 1.5) / self.habits.density
            while along < self.reach:
                kind = self.vehicle(mix)
                half = sum(KINDS[kind].length) / 4
                along += half
                jitter = rng.normal(0, 0.2)
                self.put(kind, road.pose.move(along, across + jitter, turn + rng.normal(0, 0.015)))
                along += half + 1.4 + rng.exponential(mean_gap)

    def kerb_parking(self, road: Road, side: int, share: float) -> None:
        """Park vehicles along one side of a road, in the frame of the road."""
        along = -self.reach
        across = side * (road.half_width - 1.15)
        share *= min(1.3, self.habits.density)
        while along < self.reach:
            if self.rng.random() < share:
                kind = "van" if self.rng.random() < 0.12 else "car"
                turn = 0.0 if side > 0 else np.pi
                self.put(kind, road.pose.move(along, across, turn + self.rng.normal(0, 0.03)), 0.1)
            along += self.rng.uniform(5.6, 6.6)

    def stroll(self, pose: Pose, half_length: float, half_width: float, groups: float) -> None:
        """Scatter people, alone or in small groups, over a strip."""
        rng = self.rng
        amount = groups * self.habits.pedestrians * self.habits.density
        for _ in range(int(rng.poisson(amount))):
            middle = pose.move(rng.uniform(-half_length, half_length), rng.uniform(-half_width, half_width))
            heading = rng.choice((0.0, np.pi)) + rng.normal(0, 0.6)
            for _ in range(int(rng.choice((1, 2, 3, 4), p=(0.6, 0.25, 0.1, 0.05)))):
                beside = middle.move(rng.normal(0, 1.3), rng.normal(0, 1.3), heading + rng.normal(0, 0.3))
                self.put("person", beside, 0.0)

    def ride(self, pose: Pose, half_length: float, across: float, count: float) -> None:
        """Scatter bicycles along a line `across` the heading on both sides."""
        rng = self.rng
        for _ in range(int(rng.poisson(count * self.habits.cyclists * self.habits.density))):
            side = int(rng.choice((-1, 1)))
            turn = (0.0 if side > 0 else np.pi) + rng.normal(0, 0.12)
            along = rng.uniform(-half_length, half_length)
            self.put("bicycle", pose.move(along, side * across + rng.normal(0, 0.25), turn), 0.05)

    def clutter(
        self, kinds: tuple[str, ...], count: float, on: int | None = None, pose: Pose | None = None,
        spread: float | None = None,
    ) -> None:  # fmt: skip
        """Scatter look-alikes.

        Args:
            kinds: keys of `KINDS` to choose from.
            count: expected number at habits 1.
            on: `PAVED`: only where it is paved; 0: only where it is not; None: anywhere.
            pose: middle of the area; None: of the frame.
            spread: half side of the area, metres; None: the whole frame.
        """
        rng = self.rng
        area = self.canvas.half_extent if spread is None else spread
        middle = pose or Pose(0.0, 0.0)
        for _ in range(int(rng.poisson(count * self.habits.clutter))):
            kind = kinds[int(rng.integers(len(kinds)))]
            turn = rng.integers(4) * np.pi / 2 + rng.normal(0, 0.1)
            spot = middle.move(rng.uniform(-area, area), rng.uniform(-area, area), turn)
            inside = self._covers(spot) & PAVED
            if on is None or inside == on:
                self.put(kind, spot)

    def house(self, pose: Pose, length: float, width: float, height: float) -> bool:
        """Put a building where nothing is paved, built or taken; say whether it fits."""
        area = rectangle(-length / 2 - 1, -width / 2 - 1, length / 2 + 1, width / 2 + 1)
        if not self.canvas.sees(pose, length) or not self.free(pose, area, PAVED | BUILT | TAKEN):
            return False
        self._mark(pose, area, BUILT)
        self.plan.buildings.append(Building(pose, length, width, height))
        return True

    def houses(self, count: int, sizes: tuple[float, float], heights: tuple[float, float], turn: float) -> None:
        """Try to put `count` buildings anywhere, all turned alike up to right angles."""
        rng = self.rng
        for _ in range(count):
            pose = self._anywhere(turn + rng.integers(2) * np.pi / 2)
            self.house(pose, rng.uniform(*sizes), rng.uniform(*sizes) * 0.75, rng.uniform(*heights))

    def woods(self, count: float, radii: tuple[float, float] = (1.6, 4.2)) -> None:
        """Scatter trees where it is not paved or built; crowns may hang over roads."""
        for _ in range(int(self.rng.poisson(count * self.habits.trees))):
            self.tree(self._anywhere(), float(self.rng.uniform(*radii)))

    def tree(self, pose: Pose, radius: float) -> None:
        """Plant a tree whose trunk stands on free ground."""
        trunk = oval(1.0, 1.0, 6)
        if self.canvas.sees(pose, radius) and self.free(pose, trunk, PAVED | BUILT):
            self.plan.trees.append(Tree(pose, radius))

    def avenue(self, pose: Pose, across: float, spacing: float) -> None:
        """Plant a row of trees parallel to the heading, thinned by the habits of the scene."""
        rng = self.rng
        for along in np.arange(-self.reach, self.reach, spacing):
            if rng.random() < 0.6 * self.habits.trees:
                spot = pose.move(along + rng.normal(0, 0.8), across + rng.normal(0, 0.4))
                self.plan.trees.append(Tree(spot, float(rng.uniform(1.5, 3.0))))

    # -- occupancy ------------------------------------------------------------------------------

    def free(self, pose: Pose, outline: Points, bits: int) -> bool:
        """Say whether no cell under the outline carries one of the bits."""
        corners, x0, y0, x1, y1 = self._cells(pose, outline)
        window = self._map[y0:y1, x0:x1]
        if not (window & bits).any():
            return True
        mask = np.zeros(window.shape, np.uint8)
        cv2.fillConvexPoly(mask, corners - np.array((x0, y0), np.int32), (bits,))
        return not (window & mask).any()

    def _mark(self, pose: Pose, outline: Points, bit: int) -> None:
        corners, x0, y0, x1, y1 = self._cells(pose, outline)
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        if mask.size:
            cv2.fillConvexPoly(mask, corners - np.array((x0, y0), np.int32), (bit,))
            self._map[y0:y1, x0:x1] |= mask

    def _covers(self, pose: Pose) -> int:
        column, row = (int((value + self.reach) * _CELLS_PER_METRE) for value in (pose.x, pose.y))
        last = len(self._map) - 1
        return int(self._map[min(max(row, 0), last), min(max(column, 0), last)])

    def _cells(self, pose: Pose, outline: Points) -> tuple[npt.NDArray[np.int32], int, int, int, int]:
        """Return an outline in cells and its window clipped to the map."""
        cos, sin = np.cos(pose.heading), np.sin(pose.heading)
        turned = np.asarray(outline, np.float64) @ np.array([[cos, sin], [-sin, cos]])
        moved = turned + np.array((pose.x + self.reach, pose.y + self.reach))
        corners = np.rint(moved * _CELLS_PER_METRE).astype(np.int32)
        side = len(self._map)
        (low_x, low_y), (high_x, high_y) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        x0, y0 = min(max(low_x, 0), side), min(max(low_y, 0), side)
        return corners, x0, y0, min(max(high_x + 1, 0), side), min(max(high_y + 1, 0), side)

    def _anywhere(self, turn: float = 0.0) -> Pose:
        far = self.canvas.half_extent
        return Pose(float(self.rng.uniform(-far, far)), float(self.rng.uniform(-far, far)), turn)


def earth(rng: np.random.Generator) -> Colour:
    """Draw the colour of meadow, dry grass or soil."""
    colours: tuple[Colour, ...] = (
        (104, 122, 70), (122, 130, 78), (92, 110, 66), (148, 142, 96), (132, 116, 88), (114, 126, 92),
    )  # fmt: skip
    return shade(colours[int(rng.integers(len(colours)))], rng.uniform(0.85, 1.1))
