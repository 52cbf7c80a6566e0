"""Six kinds of place seen from above. Each paints its ground and fills its plan.

All of them are laid out along the axes of the scene frame; the canvas turns the whole frame, so
that no direction is preferred.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kd_vision.scenes.draw import Brush, Colour, Pose, rectangle
from kd_vision.scenes.site import PAVED, Placement, Road, Site, earth

_SLABS: Colour = (158, 152, 142)
_LOT: Colour = (96, 97, 101)
_LINE: Colour = (198, 198, 192)
_STREET_CLUTTER = ("pole", "dumpster", "bush", "moped", "bench", "rack")


def crossroads(site: Site) -> None:
    """Two streets, a junction with zebra crossings, houses, kerb parking, people on the pavements."""
    rng = site.rng
    site.ground(60.0, 0.5)
    main_pose = Pose(0.0, float(rng.uniform(-12, 12)))
    side_pose = Pose(float(rng.uniform(-12, 12)), 0.0, np.pi / 2)
    parking = rng.random() < 0.7
    main = site.road(main_pose, int(rng.integers(1, 3)), kerb=2.6 if parking else 0.5, sidewalk=2.4)
    side = site.road(side_pose, 1, kerb=2.4 if rng.random() < 0.5 else 0.5, sidewalk=2.2)
    centre = Pose(side_pose.x, main_pose.y)
    a, b = side.half_width, main.half_width
    site.surface(centre, rectangle(-a - 3, -b, a + 3, b), (92, 92, 96))
    site.surface(centre, rectangle(-a, -b - 3, a, b + 3), (92, 92, 96))
    for end in (-1, 1):
        site.crossing(centre.move(end * (a + 2.0)), b)
        site.crossing(centre.move(0.0, end * (b + 2.0), np.pi / 2), a)
        site.stroll(centre.move(end * (a + 2.0)), 1.0, b, 0.5)
    site.traffic(main, float(rng.uniform(0.35, 0.9)))
    site.traffic(side, float(rng.uniform(0.2, 0.75)))
    if parking:
        for edge in (-1, 1):
            site.kerb_parking(main, edge, float(rng.uniform(0.2, 0.85)))
    site.ride(main_pose, site.reach, b - 0.7, 2.0)
    for edge in (-1, 1):
        site.stroll(main_pose.move(0.0, edge * (b + 1.1)), 34, 0.7, 2.6)
        site.stroll(side_pose.move(0.0, edge * (a + 1.1)), 34, 0.7, 1.4)
        site.avenue(main_pose, edge * (b + 2.6), 9.0)
    site.houses(60, (9, 20), (4, 11), 0.0)
    site.woods(12)
    site.clutter(_STREET_CLUTTER, 16)
    site.clutter(("patch", "arrow"), 7, PAVED)


def car_park(site: Site) -> None:
    """Rows of marked bays with aisles between them, tree islands, a shop and its yard clutter."""
    rng = site.rng
    site.ground(60.0, 0.5)
    street = site.road(Pose(0.0, float(rng.uniform(-30, -18))), 1, sidewalk=2.0)
    site.traffic(street, float(rng.uniform(0.2, 0.6)))
    top = street.pose.y + street.half_width + 5
    rows = int(rng.integers(2, 4))
    half = float(rng.uniform(20, 36))
    middle = Pose(float(rng.uniform(-10, 10)), top)
    site.surface(middle, rectangle(-half - 3, 0, half + 3, rows * 17.0), _LOT, 0.22)
    site.surface(middle, rectangle(-4, -6, 4, 1), _LOT, 0.22)
    share = float(rng.uniform(0.35, 0.9)) * min(1.3, site.habits.density)
    for row in range(rows):
        for across, turn in ((2.6, np.pi / 2), (14.0, -np.pi / 2)):
            _bays(site, middle.move(0.0, row * 17.0 + across), half, turn, share)
        site.stroll(middle.move(0.0, row * 17.0 + 8.3), half, 2.4, 1.6)
    aisle = Road(middle.move(0.0, 8.3), half, 3.0, (1.6, -1.6))
    site.traffic(aisle, 0.1, (0.8, 0.2, 0.0, 0.0))
    site.ride(middle.move(0.0, 8.3), half, 1.5, 0.5)
    site.stroll(street.pose.move(0.0, street.half_width + 1), 34, 0.6, 1.6)
    site.clutter(("dumpster", "container", "trailer", "rack", "moped", "pole"), 9, PAVED)
    site.clutter(("patch", "arrow"), 6, PAVED)
    site.house(middle.move(0.0, rows * 17.0 + 10), half * 1.4, 16, 7)
    site.houses(20, (8, 16), (4, 9), 0.0)
    site.avenue(middle, rows * 17.0 + 1.2, 7.0)
    site.avenue(middle, -1.0, 7.0)
    site.woods(10)


def _bays(site: Site, pose: Pose, half: float, turn: float, share: float) -> None:
    """Mark a row of parking bays and park in some; vehicles stand either way round."""
    rng = site.rng
    brush = Brush(site.canvas, pose)
    for x in np.arange(-half, half, 2.75):
        brush.box(x - 0.07, -2.6, x + 0.07, 2.6, _LINE)
        if rng.random() < 0.04 * site.habits.trees:
            site.tree(pose.move(x + 1.4), 1.8)
        elif rng.random() < share:
            kind = "van" if rng.random() < 0.08 else "car"
            backwards = np.pi if rng.random() < 0.25 else 0.0
            spot = pose.move(x + 1.37 + rng.normal(0, 0.1), rng.normal(0, 0.25), turn + backwards)
            site.put(kind, Pose(spot.x, spot.y, spot.heading + rng.normal(0, 0.03)), 0.05)
        elif rng.random() < 0.06 * site.habits.clutter:
            clutter = ("dumpster", "trailer", "rack", "moped")[int(rng.integers(4))]
            site.put(clutter, pose.move(x + 1.37, 0.0, turn), 0.0)


def motorway(site: Site) -> None:
    """Two carriageways with dense traffic and many trucks, fields on both sides, often a bridge."""
    rng = site.rng
    _fields(site)
    lanes = int(rng.integers(2, 4))
    road = site.road(Pose(0.0, float(rng.uniform(-10, 10))), lanes, 3.5, median=3.0, kerb=2.6)
    habits = site.habits.vehicle_mix
    heavy = (habits[0], habits[1] * 1.2, habits[2] * 1.8, habits[3] * 1.3)
    site.traffic(road, float(rng.uniform(0.35, 1.0)), heavy)
    for edge in (-1, 1):
        site.avenue(road.pose, edge * (road.half_width + 2.2), 8.0)
    if rng.random() < 0.55:
        _bridge(site)
    site.houses(3, (8, 16), (4, 8), float(rng.uniform(0, 1.5)))
    site.woods(14)
    site.clutter(("bush", "pole", "bale", "container"), 7, 0)
    site.clutter(("patch", "arrow", "pole"), 5, PAVED)


def _bridge(site: Site) -> None:
    """Lead a small road over the site; vehicles below are partly hidden, some drive above."""
    rng = site.rng
    turn = np.pi / 2 + rng.normal(0, 0.3)
    pose = Pose(float(rng.uniform(-22, 22)), 0.0, turn)
    road = Road(pose, 2 * site.reach, 4.6, (1.7, -1.7))
    site.plan.bridges.append(road)
    for across in road.lanes:
        along = -site.reach
        while along < site.reach:
            along += 6 + rng.exponential(26.0 / site.habits.density)
            kind = "car" if rng.random() < 0.75 else site.vehicle()
            spot = pose.move(along, across, 0.0 if across > 0 else np.pi)
            site.plan.on_bridges.append(Placement(kind, spot, *site.size(kind)))
            along += 11


def countryside(site: Site) -> None:
    """Fields, one road with little traffic, a farm, bales and machinery that is no vehicle."""
    rng = site.rng
    _fields(site)
    road = site.road(Pose(0.0, float(rng.uniform(-20, 20))), 1, 3.2, kerb=0.4)
    site.traffic(road, float(rng.uniform(0.35, 0.6)), (0.6, 0.14, 0.2, 0.06))
    site.ride(road.pose, 30, road.half_width - 0.8, 1.2)
    site.avenue(road.pose, road.half_width + 2.0, 7.0)
    site.stroll(road.pose.move(0.0, -road.half_width + 0.3), 30, 0.5, 0.8)
    yard = Pose(float(rng.uniform(-18, 18)), road.pose.y + 22 * (1 if road.pose.y < 0 else -1))
    site.surface(yard, rectangle(-13, -11, 13, 11), (140, 128, 106), 0.4)
    for _ in range(int(rng.poisson(3.5 * site.habits.density))):
        spot = yard.move(rng.uniform(-11, 11), rng.uniform(-9, 9), rng.uniform(0, 6.28))
        site.put(site.vehicle((0.5, 0.2, 0.3, 0.0)), spot)
    site.stroll(yard, 11, 9, 1.4)
    site.clutter(("trailer", "container", "bale", "dumpster", "moped"), 7, None, yard, 14)
    site.houses(8, (9, 20), (5, 9), 0.0)
    site.woods(16)
    site.clutter(("bale", "bush"), 14, 0)


def _fields(site: Site) -> None:
    """Cover the ground with a patchwork of fields in one random direction."""
    rng = site.rng
    turn = float(rng.choice((0.0, np.pi / 2))) + float(rng.normal(0, 0.1))
    far = site.reach * 1.4
    across = -far
    while across < far:
        width = float(rng.uniform(14, 38))
        outline = rectangle(-2 * far, across, 2 * far, across + width)
        site.field(Pose(0.0, 0.0, turn), outline, earth(rng), bool(rng.random() < 0.65))
        across += width


def plaza(site: Site) -> None:
    """A paved square with people, bicycles, parasols and benches beside a street with buses."""
    rng = site.rng
    site.ground(50.0, 0.5)
    street = site.road(Pose(0.0, float(rng.uniform(14, 30))), int(rng.integers(1, 3)), sidewalk=2.4)
    habits = site.habits.vehicle_mix
    site.traffic(street, float(rng.uniform(0.3, 0.8)), (habits[0], habits[1], habits[2], habits[3] * 2.5))
    half_x, half_y = rng.uniform(18, 30), rng.uniform(12, 20)
    square = Pose(float(rng.uniform(-10, 10)), float(street.pose.y - street.half_width - 2.4 - half_y))
    site.surface(square, rectangle(-half_x, -half_y, half_x, half_y), _SLABS, 0.16)
    brush = Brush(site.canvas, square)
    for x in np.arange(-half_x, half_x, rng.uniform(2.5, 5.0)):
        brush.box(x, -half_y, x + 0.12, half_y, (140, 134, 126))
    site.stroll(square, half_x - 1, half_y - 1, 11)
    site.stroll(street.pose.move(0.0, -street.half_width - 1.2), 34, 0.8, 3.0)
    _bicycle_stand(site, square.move(rng.uniform(-half_x, half_x) * 0.7, half_y - 2.5))
    site.ride(square, half_x, float(rng.uniform(2, 8)), 2.4)
    site.ride(street.pose, 34, street.half_width - 0.6, 1.4)
    site.clutter(("parasol", "bench", "pole", "bush", "rack"), 16, PAVED, square, float(half_x))
    site.clutter(("dumpster", "container", "moped"), 4, None)
    for _ in range(2):
        spot = square.move(rng.uniform(-half_x, half_x), rng.uniform(-half_y, half_y), rng.uniform(0, 6))
        site.put("van" if rng.random() < 0.7 else "truck", spot)
    site.houses(30, (10, 22), (5, 12), 0.0)
    site.woods(18)
    site.clutter(("bush",), 6, 0)


def _bicycle_stand(site: Site, pose: Pose) -> None:
    """Stand some bicycles side by side, as people leave them."""
    rng = site.rng
    for index in range(int(rng.poisson(3.0 * site.habits.cyclists))):
        spot = pose.move(1.7 * index, rng.normal(0, 0.15), np.pi / 2 + rng.normal(0, 0.12))
        site.put("bicycle", spot, 0.0)


def depot(site: Site) -> None:
    """A yard with halls, parked trucks, vans and buses between containers and bare trailers."""
    rng = site.rng
    site.ground(60.0, 0.5)
    street = site.road(Pose(0.0, float(rng.uniform(22, 32))), 1, sidewalk=0.0, kerb=1.2)
    habits = site.habits.vehicle_mix
    site.traffic(street, float(rng.uniform(0.2, 0.6)), (habits[0], habits[1], habits[2] * 2, habits[3]))
    yard = Pose(0.0, float(street.pose.y - 30))
    site.surface(yard, rectangle(-34, -21, 34, 24), (118, 116, 112), 0.28)
    mixes = ((0.25, 0.3, 0.45, 0.0), (0.2, 0.2, 0.1, 0.5), (0.3, 0.5, 0.2, 0.0))
    for across in (-13.0, 1.0, 14.0):
        mix = mixes[int(rng.choice(3, p=(0.5, 0.22, 0.28)))]
        _row(site, yard.move(0.0, across), mix, float(rng.uniform(0.25, 0.7)))
    site.stroll(yard, 30, 18, 3.5)
    site.clutter(("container", "trailer", "dumpster", "pole", "moped"), 12, PAVED)
    site.clutter(("patch", "arrow"), 6, PAVED)
    site.houses(24, (12, 26), (6, 11), 0.0)
    site.avenue(street.pose, -street.half_width - 1.5, 8.0)
    site.woods(9)


def _row(site: Site, pose: Pose, mix: tuple[float, ...], share: float) -> None:
    """Park a row of large vehicles side by side, with trailers and containers among them."""
    rng = site.rng
    turn = float(rng.choice((np.pi / 2, -np.pi / 2)))
    for x in np.arange(-30, 30, 4.0):
        spot = pose.move(x + rng.normal(0, 0.15), rng.normal(0, 0.5), turn + rng.normal(0, 0.03))
        draw = rng.random()
        if draw < share * min(1.4, site.habits.density):
            site.put(site.vehicle(mix), spot, 0.1)
        elif draw > 1 - 0.22 * site.habits.clutter:
            site.put("trailer" if rng.random() < 0.6 else "container", spot, 0.1)


LAYOUTS: dict[str, Callable[[Site], None]] = {
    "crossroads": crossroads,
    "car_park": car_park,
    "motorway": motorway,
    "countryside": countryside,
    "plaza": plaza,
    "depot": depot,
}
LAYOUT_WEIGHTS: tuple[float, ...] = (0.28, 0.16, 0.18, 0.1, 0.18, 0.1)
