"""Synthetic aerial scenes: the data set that needs no download."""

from __future__ import annotations

from kd_vision.data.synthetic.objects import CLASSES
from kd_vision.data.synthetic.scene import MIN_BOX_PX, MIN_VISIBLE, Scene, SceneConfig, render_scene
from kd_vision.data.synthetic.write import DESCRIPTOR, scene_seed, write_scenes

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
