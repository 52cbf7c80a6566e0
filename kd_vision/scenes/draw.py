"""Drawing in metres: a canvas that knows, for every pixel, which object owns it.

Scenes are laid out in metres in a scene frame whose origin is the middle of the image; the canvas
turns and scales that frame into pixels, `SUPERSAMPLE` times finer than the final image, so that
plain polygon fills come out smooth when the canvas is reduced. Beside the picture the canvas keeps
an owner map: drawing an object writes its number there, drawing something above it wipes it out.
What is left at the end is the visible extent of every object.

Shapes: S side of the canvas in pixels, N points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

SUPERSAMPLE = 2
LONGEST_OBJECT_M = 13.0
LIT = 255
_FRACTION_BITS = 4
_FIXED = 1 << _FRACTION_BITS
_TILE = 512

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]] | npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Pose:
    """Where something stands: position in metres, heading in radians (0: along +x, pi/2: +y, down)."""

    x: float
    y: float
    heading: float = 0.0

    def move(self, along: float, across: float = 0.0, turn: float = 0.0) -> Pose:
        """Return the pose reached by going `along` the heading, `across` to its right, then turning."""
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        return Pose(self.x + cos * along - sin * across, self.y + sin * along + cos * across, self.heading + turn)


def oval(length: float, width: float, corners: int = 12, x: float = 0.0, y: float = 0.0) -> npt.NDArray[np.float64]:
    """Return (corners, 2) points of an ellipse with these full axes around (x, y)."""
    return _unit_circle(corners) * (length / 2, width / 2) + (x, y)


@lru_cache(maxsize=8)
def _unit_circle(corners: int) -> npt.NDArray[np.float64]:
    angles = np.arange(corners) * (2 * math.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    """Return the corners of an upright rectangle in a local frame."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def shade(colour: Colour, factor: float) -> Colour:
    """Return `colour` made darker (factor < 1) or lighter (factor > 1)."""
    red, green, blue = colour
    return min(255, int(red * factor)), min(255, int(green * factor)), min(255, int(blue * factor))


class Canvas:
    """The picture at supersampled size, with its owner map, ground texture and shadow maps.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        owners: (S + 2 margin, S + 2 margin) int16; 0 nobody, otherwise the object's number. The
            margin holds the part of an object that lies outside the frame.
        texture: (S, S) uint8 brightness of the ground, 128 leaves the colour as it is.
        shadow: (S, S) uint8 light that reaches a pixel, `LIT` is full light.
    """

    def __init__(self, image_size: int, pixels_per_metre: float, rotation: float, ground: Colour) -> None:
        self.side = image_size * SUPERSAMPLE
        self.scale = pixels_per_metre * SUPERSAMPLE
        self.rotation = rotation
        self.margin = math.ceil(LONGEST_OBJECT_M * self.scale)
        self.image: Bytes = np.empty((self.side, self.side, 3), np.uint8)
        self.image[:] = ground
        owner_side = self.side + 2 * self.margin
        self.owners: npt.NDArray[np.int16] = np.zeros((owner_side, owner_side), np.int16)
        self.texture: Bytes = np.full((self.side, self.side), 128, np.uint8)
        self.shadow: Bytes = np.full((self.side, self.side), LIT, np.uint8)
        self.sun_offset: tuple[float, float] = (0.0, 0.0)

    @property
    def half_extent(self) -> float:
        """Half the diagonal of the frame in metres: nothing visible lies farther from the middle."""
        return self.side / self.scale * math.sqrt(0.5)

    def matrix(self, pose: Pose) -> npt.NDArray[np.float64]:
        """Return the (2, 3) map from a frame at `pose` (metres) to canvas pixels."""
        cos, sin = math.cos(self.rotation), math.sin(self.rotation)
        middle = self.side / 2
        x = middle + self.scale * (cos * pose.x - sin * pose.y)
        y = middle + self.scale * (sin * pose.x + cos * pose.y)
        turned = self.rotation + pose.heading
        along, across = self.scale * math.cos(turned), self.scale * math.sin(turned)
        return np.array([[along, -across, x], [across, along, y]])

    def sees(self, pose: Pose, reach: float) -> bool:
        """Say whether anything within `reach` metres of the pose can fall into the frame."""
        x, y = self.matrix(pose)[:, 2]
        far = reach * self.scale
        return bool(-far < x < self.side + far and -far < y < self.side + far)

    def lay_texture(self, points: Points, pose: Pose, tile: Bytes, tile_metres: float, strength: float) -> None:
        """Give a region of the ground a texture.

        Args:
            points: (N, 2) outline in the frame at `pose`, metres.
            pose: the frame; the texture is turned with it.
            tile: (512, 512) uint8, seamless, mean 128.
            tile_metres: ground length that one tile covers.
            strength: 0 flat, 1 the tile's full contrast.
        """
        to_canvas = self.matrix(pose)
        outline = np.rint(_transform(to_canvas, points)).astype(np.int32)
        x0, y0 = np.clip(outline.min(axis=0), 0, self.side)
        x1, y1 = np.clip(outline.max(axis=0) + 1, 0, self.side)
        if x1 <= x0 or y1 <= y0:
            return
        zoom = tile_metres / _TILE
        from_tile = to_canvas.copy()
        from_tile[:, :2] *= zoom
        from_tile[:, 2] -= (x0, y0)
        size = (int(x1 - x0), int(y1 - y0))
        patch = cv2.warpAffine(tile, from_tile, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_WRAP)
        patch = cv2.convertScaleAbs(patch, alpha=strength, beta=128 * (1 - strength))
        mask = np.zeros((size[1], size[0]), np.uint8)
        cv2.fillPoly(mask, [outline - np.array((x0, y0), np.int32)], (255,))
        cv2.copyTo(patch, mask, self.texture[y0:y1, x0:x1])

    def apply_texture(self) -> None:
        """Multiply the ground by its texture."""
        self._multiply(self.texture, 1 / 128)

    def cast(self, points: Points, pose: Pose, height: float, light: int) -> None:
        """Darken the shadow that a solid of this outline and height (metres) throws.

        Args:
            points: (N, 2) outline in the frame at `pose`, metres.
            pose: where the solid stands.
            height: of the solid, metres.
            light: value written into the shadow map, 0 black to `LIT`.
        """
        base = _transform(self.matrix(pose), points)
        offset = np.array(self.sun_offset) * (height * self.scale)
        hull = cv2.convexHull(np.concatenate([base, base + offset]).astype(np.float32))
        cv2.fillConvexPoly(self.shadow, np.rint(hull * _FIXED).astype(np.int32), (light,), cv2.LINE_8, _FRACTION_BITS)

    def apply_shadow(self, softness: float) -> None:
        """Darken the picture by the shadow map and start a fresh map.

        Args:
            softness: width of the half-shadow in metres.
        """
        width = int(softness * self.scale) | 1
        light = cv2.blur(self.shadow, (width, width)) if width > 1 else self.shadow
        self._multiply(np.asarray(light, np.uint8), 1 / LIT)
        self.shadow[:] = LIT

    def add_light(self, outlines: Sequence[tuple[Pose, Points]], strength: int) -> None:
        """Brighten what soft, slightly yellow beams fall on.

        Args:
            outlines: frame and (N, 2) convex outline of every beam, metres.
            strength: grey levels added in the middle of a beam.
        """
        beams = np.zeros((self.side, self.side), np.uint8)
        for pose, points in outlines:
            corners = np.rint(_transform(self.matrix(pose), points) * _FIXED).astype(np.int32)
            cv2.fillConvexPoly(beams, corners, (strength,), cv2.LINE_8, _FRACTION_BITS)
        light = np.asarray(cv2.blur(beams, (9, 9)), np.uint8)
        cv2.add(self.image, cv2.merge([light, light, cv2.convertScaleAbs(light, alpha=0.75)]), dst=self.image)

    def _multiply(self, factor: Bytes, scale: float) -> None:
        cv2.multiply(self.image, cv2.merge([factor, factor, factor]), dst=self.image, scale=scale)


class Brush:
    """Draws in the frame of one thing. `solid` strokes also claim the owner map for it.

    Args:
        canvas: where to draw.
        pose: the thing's frame.
        owner: the object's number; 0: something that hides objects below; None: flat on the ground.
    """

    def __init__(self, canvas: Canvas, pose: Pose, owner: int | None = None) -> None:
        self.canvas = canvas
        self.owner = owner
        self._matrix = canvas.matrix(pose)
        self._rows = self._matrix.tolist()

    def poly(self, points: Points, colour: Colour, solid: bool = False) -> None:
        """Fill a convex polygon; `points` (N, 2) in metres."""
        pixels = _transform(self._matrix, points)
        corners = np.rint(pixels * _FIXED).astype(np.int32)
        cv2.fillConvexPoly(self.canvas.image, corners, colour, cv2.LINE_8, _FRACTION_BITS)
        if solid and self.owner is not None:
            moved = corners + np.int32(self.canvas.margin * _FIXED)
            cv2.fillConvexPoly(self.canvas.owners, moved, (self.owner,), cv2.LINE_8, _FRACTION_BITS)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, solid: bool = False) -> None:
        """Fill a rectangle."""
        self.poly(rectangle(x0, y0, x1, y1), colour, solid)

    def line(
        self, start: tuple[float, float], end: tuple[float, float], width: float, colour: Colour,
        solid: bool = False,
    ) -> None:  # fmt: skip
        """Draw a straight bar of a width in metres."""
        length = math.hypot(end[0] - start[0], end[1] - start[1]) or 1e-6
        across_x = (start[1] - end[1]) / length * width / 2
        across_y = (end[0] - start[0]) / length * width / 2
        self.poly(
            [
                (start[0] + across_x, start[1] + across_y),
                (end[0] + across_x, end[1] + across_y),
                (end[0] - across_x, end[1] - across_y),
                (start[0] - across_x, start[1] - across_y),
            ],
            colour,
            solid,
        )

    def disc(self, x: float, y: float, radius: float, colour: Colour, solid: bool = False) -> None:
        """Fill a circle."""
        (xx, xy, x0), (yx, yy, y0) = self._rows
        column, row = xx * x + xy * y + x0, yx * x + yy * y + y0
        size = round(radius * self.canvas.scale * _FIXED)
        middle = (round(column * _FIXED), round(row * _FIXED))
        cv2.circle(self.canvas.image, middle, size, colour, -1, cv2.LINE_8, _FRACTION_BITS)
        if solid and self.owner is not None:
            add = self.canvas.margin * _FIXED
            moved = (middle[0] + add, middle[1] + add)
            cv2.circle(self.canvas.owners, moved, size, (self.owner,), -1, cv2.LINE_8, _FRACTION_BITS)

    def claimed(self, reach: float) -> tuple[int, tuple[int, int, int, int]]:
        """Return how many pixels the object owns now, and the window (x0, y0, x1, y1) they lie in.

        Args:
            reach: no stroke went farther than this from the pose, metres.
        """
        x, y = self._matrix[:, 2] + self.canvas.margin
        far = reach * self.canvas.scale + 2
        side = self.canvas.owners.shape[0]
        x0, y0 = max(0, int(x - far)), max(0, int(y - far))
        x1, y1 = min(side, int(x + far) + 1), min(side, int(y + far) + 1)
        window = self.canvas.owners[y0:y1, x0:x1]
        return int(np.count_nonzero(window == self.owner)), (x0, y0, x1, y1)


def _transform(matrix: npt.NDArray[np.float64], points: Points) -> npt.NDArray[np.float64]:
    moved: npt.NDArray[np.float64] = np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]
    return moved


@lru_cache(maxsize=8)
def cloud_tile(roughness: float) -> Bytes:
    """Return a seamless (512, 512) cloud of mean 128; `roughness` 0 is white noise, 2 is smooth.

    The tile is always the same (its generator has a fixed seed); scenes shift, turn and stretch it.
    """
    rng = np.random.Generator(np.random.PCG64(20240229))
    spectrum = np.fft.rfft2(rng.standard_normal((_TILE, _TILE)))
    rows, columns = np.fft.fftfreq(_TILE)[:, None], np.fft.rfftfreq(_TILE)[None, :]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = 1.0
    field = np.fft.irfft2(spectrum / frequency**roughness, (_TILE, _TILE))
    field = (field - field.mean()) / field.std()
    tile: Bytes = np.clip(np.rint(128 + 40 * field), 0, 255).astype(np.uint8)
    return tile


@lru_cache(maxsize=16)
def row_tile(rows: int, sharpness: float) -> Bytes:
    """Return a seamless (512, 512) tile of wavering crop rows or slats along x, mean about 128.

    Args:
        rows: how many rows one tile holds.
        sharpness: 0 soft waves, 1 and more hard edges.
    """
    waver = (cloud_tile(2.0).astype(np.float64) - 128) / 40
    grain = (cloud_tile(0.3).astype(np.float64) - 128) / 40
    y = np.arange(_TILE)[:, None] / _TILE
    wave = np.sin(2 * math.pi * rows * y + 0.5 * waver)
    hard = np.tanh(wave * (1 + 3 * sharpness))
    return np.clip(np.rint(128 + 45 * hard + 18 * grain), 0, 255).astype(np.uint8)
