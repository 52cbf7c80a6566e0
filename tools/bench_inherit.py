"""Times the closed-form fit of `inherit`: teacher to student at an image size, on random pictures.

python tools/bench_inherit.py --teacher yolov8s --student yolov8n --image-size 640 --threads 2
"""

from __future__ import annotations

import argparse
import json

import torch

from kd_vision.detectors import family_module
from kd_vision.detectors.base import Detector
from kd_vision.detectors.inherit_config import InheritConfig
from kd_vision.detectors.ultralytics.config import UltralyticsConfig
from kd_vision.inherit.start import inherit_weights


def _build(model: str) -> Detector:
    detector: Detector = family_module("ultralytics", "bench").build(
        UltralyticsConfig(model=model), ("a", "b", "c"), "bench"
    )
    return detector


def main() -> None:
    """Print the seconds as JSON; the time does not depend on what the weights and the pictures are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="yolov8s")
    parser.add_argument("--student", default="yolov8n")
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images = torch.rand(options.images, 3, options.image_size, options.image_size)
    settings = InheritConfig.model_validate({"from": "teacher.pt", "images": options.images})
    result = inherit_weights(_build(options.student), _build(options.teacher), settings, images, "bench")
    print(json.dumps({**vars(options), "seconds": round(result.seconds, 1), "share": result.weights.share}))


if __name__ == "__main__":
    main()
