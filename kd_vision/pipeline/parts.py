"""The models and losses of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kd_vision.core.spec import DetectorSpec
from kd_vision.data.dataset import DetectionData
from kd_vision.detectors.base import Detector
from kd_vision.losses.distiller import Distiller
from kd_vision.teachers.dense_labels import DenseLabelsTeacher
from kd_vision.teachers.frozen import FrozenTeacher
from kd_vision.teachers.offline import OfflineTeacher

AnyTeacher = FrozenTeacher | OfflineTeacher | DenseLabelsTeacher


@dataclass(frozen=True, slots=True)
class RunParts:
    """The models and losses of a run.

    Attributes:
        student: the model that is trained.
        teachers: by name.
        distiller: the distillation terms; None: plain training.
    """

    student: Detector
    teachers: Mapping[str, AnyTeacher]
    distiller: Distiller | None

    @property
    def online(self) -> dict[str, FrozenTeacher]:
        """The online teachers, which are run on images."""
        return {name: teacher for name, teacher in self.teachers.items() if isinstance(teacher, FrozenTeacher)}

    @property
    def offline(self) -> dict[str, OfflineTeacher]:
        """The offline teachers, whose boxes are precomputed."""
        return {name: teacher for name, teacher in self.teachers.items() if isinstance(teacher, OfflineTeacher)}

    @property
    def dense(self) -> dict[str, DenseLabelsTeacher]:
        """The teachers whose dense predictions on the batches were stored."""
        return {name: teacher for name, teacher in self.teachers.items() if isinstance(teacher, DenseLabelsTeacher)}

    @property
    def specs(self) -> dict[str, DetectorSpec]:
        """Facts about each teacher, by name."""
        return {name: teacher.spec for name, teacher in self.teachers.items()}

    @property
    def channels(self) -> int:
        """Number of channels of the images: the largest of student and of teachers that look, or looked, at batches."""
        looking = [*self.online, *self.dense]
        return max(self.student.spec.input_channels, *(self.specs[name].input_channels for name in looking), 1)

    def with_pseudo_labels(self, data: DetectionData) -> DetectionData:
        """Return the data with the pseudo labels of every offline teacher."""
        for teacher in self.offline.values():
            data = teacher.attach(data)
        return data
