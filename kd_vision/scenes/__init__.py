"""Synthetic aerial scenes: the data set that needs no download.

At 256 px and difficulty 0.5, as `tests/data/test_synthetic.py` holds them to: cars are about half of
the boxes, then come people, vans, trucks; buses and bicycles are rare (about 3 and 4 of 100). The
median long side of a box is 6 to 9 px for a person, 10 to 14 for a bicycle, 18 to 23 for a car, 23
to 29 for a van, 33 to 44 for a truck and 40 to 52 for a bus.
"""

from __future__ import annotations

from kd_vision.scenes.objects import CLASSES
from kd_vision.scenes.scene import MIN_BOX_PX, MIN_VISIBLE, Scene, SceneConfig, render_scene
from kd_vision.scenes.write import DESCRIPTOR, scene_seed, write_scenes

__all__ = [
    "CLASSES",
    "DESCRIPTOR",
    "MIN_BOX_PX",
    "MIN_VISIBLE",
    "Scene",
    "SceneConfig",
    "render_scene",
    "scene_seed",
    "write_scenes",
]
