"""Everyone who takes part in a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kd_vision.core.label_map import LabelMap
from kd_vision.core.spec import DetectorSpec
from kd_vision.data.dataset import DetectionData
from kd_vision.detectors.base import Detector
from kd_vision.losses.distiller import KNOWLEDGE, Distiller
from kd_vision.pipeline.teachers import knowledge_spec
from kd_vision.teachers.frozen import FrozenTeacher
from kd_vision.teachers.offline import Knowledge, attach


@dataclass(frozen=True, slots=True)
class RunParts:
    """Everyone who takes part in a run.

    Attributes:
        student: learns.
        teachers: look at the student's images, by name.
        knowledge: what a teacher said of the images beforehand.
        labels: from the classes of `knowledge` to the data's.
        distiller: the terms; None: plain training.
    """

    student: Detector
    teachers: Mapping[str, FrozenTeacher]
    knowledge: Knowledge | None
    labels: LabelMap | None
    distiller: Distiller | None

    @property
    def specs(self) -> dict[str, DetectorSpec]:
        """What each teacher is, the stored one among them, by the name that terms learn from."""
        found = {name: teacher.spec for name, teacher in self.teachers.items()}
        if self.knowledge is not None and self.labels is not None:
            found[KNOWLEDGE] = knowledge_spec(self.labels)
        return found

    @property
    def channels(self) -> int:
        """Channels that images are read with: enough for every side."""
        return max(self.student.spec.input_channels, *(t.spec.input_channels for t in self.teachers.values()), 1)

    def with_pseudo_labels(self, data: DetectionData) -> DetectionData:
        """Return the images with what was said of them beforehand."""
        if self.knowledge is None or self.labels is None:
            return data
        return attach(data, self.knowledge, self.labels)
