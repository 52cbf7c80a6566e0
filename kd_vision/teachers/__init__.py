"""The table of teachers: torch detectors, ONNX files, ensembles, stored predictions, ground truth.

An online teacher is run on the images of each batch. An offline teacher has predicted before training. Its boxes are
attached to the data set and augmented with the images; its dense labels were predicted on the batches themselves. The
table is data: nothing is imported until a teacher is built. Every family of `FAMILIES` is a kind of teacher; another
kind is one file and one line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kd_vision.core.errors import RequestError, suggest
from kd_vision.core.predictions import Signal
from kd_vision.detectors import FAMILIES


@dataclass(frozen=True, slots=True)
class TeacherEntry:
    """A kind of teacher.

    Attributes:
        config: ``module:class`` of its typed settings; its import loads no torch.
        build: ``module:function``. Online: ``(config, classes, where)`` to a `Detector` or a `BlackBoxDetector`.
            Offline: ``(config, train, where)`` to `PrecomputedBoxes`, `train` being the training split; of the kind
            `dense_labels` ``(config, seed)`` to the folder and the manifest of its store.
        summary: one line for people.
        offline: it predicts nothing during training; its boxes are part of the batch.
        follows_student: it is the moving average of the student's weights.
        why_no_member: reason why it cannot be a member of an ensemble; empty: it can.
        offline_signals: what it provides where it is offline.
    """

    config: str
    build: str
    summary: str
    offline: bool = False
    follows_student: bool = False
    why_no_member: str = ""
    offline_signals: frozenset[Signal] = frozenset({"detections"})


TEACHERS: Mapping[str, TeacherEntry] = {
    "onnx": TeacherEntry(
        "kd_vision.teachers.onnx:OnnxConfig",
        "kd_vision.teachers.onnx:build",
        "an ONNX file: ours, ultralytics, torchvision, YOLOX, DETR and RT-DETR",
    ),
    "ensemble": TeacherEntry(
        "kd_vision.teachers.ensemble:EnsembleConfig",
        "kd_vision.teachers.ensemble:build",
        "several teachers whose boxes are fused",
    ),
    "self": TeacherEntry(
        "kd_vision.teachers.ema:EmaConfig",
        "kd_vision.teachers.ema:build",
        "the moving average of the student's weights",
        follows_student=True,
        why_no_member="it is the student of the run; give it as a second teacher",
    ),
    "store": TeacherEntry(
        "kd_vision.knowledge.config:StoreConfig",
        "kd_vision.knowledge.store:open_store",
        "a store that `kd-vision label` wrote",
        offline=True,
        why_no_member="it holds boxes of images already and predicts nothing; give it as another teacher",
    ),
    "dense_labels": TeacherEntry(
        "kd_vision.knowledge.config:DenseLabelsConfig",
        "kd_vision.knowledge.dense_manifest:open_dense_manifest",
        "dense predictions on the training batches that `kd-vision label --dense` stored",
        offline=True,
        why_no_member="it holds predictions on training batches and predicts nothing; give it as another teacher",
        offline_signals=frozenset({"grid"}),
    ),
    "predictions": TeacherEntry(
        "kd_vision.teachers.predictions_file:PredictionsConfig",
        "kd_vision.teachers.predictions_file:build",
        "a COCO result file of any model: boxes by image id",
        offline=True,
        why_no_member="it holds boxes by image id and predicts nothing; give it as another teacher",
    ),
    "labels": TeacherEntry(
        "kd_vision.teachers.ground_truth:GroundTruthConfig",
        "kd_vision.teachers.ground_truth:build",
        "the training labels: a control without further knowledge",
        offline=True,
        why_no_member="it is the ground truth of the data set; give it as another teacher",
    ),
}


def teacher_entry(kind: str, where: str) -> TeacherEntry:
    """Return the entry of a kind of teacher, a family of detectors or a line of `TEACHERS`.

    Raises:
        RequestError: the table has no such entry.
    """
    if kind in FAMILIES:
        family = FAMILIES[kind]
        return TeacherEntry(family.config, f"{family.module}:build", family.summary)
    if kind not in TEACHERS:
        raise RequestError(f"{where}.family: unknown family '{kind}'{suggest(kind, (*FAMILIES, *TEACHERS))}")
    return TEACHERS[kind]
