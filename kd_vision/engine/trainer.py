"""The training loop. Its only callbacks are the validation and the progress that it is given."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

from kd_vision.core.batch import ImageBatch
from kd_vision.core.errors import RequestError, TrainingError, first_line
from kd_vision.core.progress import Progress
from kd_vision.core.run_directory import RunDirectory
from kd_vision.detectors.base import Detector
from kd_vision.engine.allocator import keep_freed_memory
from kd_vision.engine.checkpoint import TrainingState, read_checkpoint, restore, save_checkpoint
from kd_vision.engine.config import TrainConfig
from kd_vision.engine.ema import WeightAverage
from kd_vision.engine.optimizer import LearningRate
from kd_vision.engine.step import StepTerms, TermGuard, TrainingStep, gradient_norms, terms


class Batches(Protocol):
    """Training batches as a pure function of the step, so that a run can start at any step."""

    steps_per_epoch: int

    def batches(self, start_step: int = 0) -> Iterator[ImageBatch]:
        """Yield every batch from `start_step` to the end of training."""
        ...


@dataclass(frozen=True, slots=True)
class FitResult:
    """Result of training.

    Attributes:
        steps: batches done.
        seconds: wall time of training without validation, over all resumes.
        images_per_second: images the student was trained on per second, without validation.
        best_ap: best validation AP as a fraction; None without validation.
        stopped_early: patience ran out.
    """

    steps: int
    seconds: float
    images_per_second: float
    best_ap: float | None
    stopped_early: bool


class Trainer:
    """Trains a student.

    Args:
        fabric: launched; sets device, precision and processes.
        run: student, distiller and teachers.
        stream: batches.
        optimizer: over the parameters of `run`.
        config: settings.
        directory: of log and checkpoints.
        identity: values that a resumed run must share, kept in checkpoints.
        validate: returns the metrics of a detector on the validation split, AP as a fraction; None: no validation.
        reporter: receives the progress after every step.
    """

    def __init__(
        self,
        fabric: Fabric,
        run: TrainingStep,
        stream: Batches,
        optimizer: Optimizer,
        config: TrainConfig,
        directory: RunDirectory,
        identity: Mapping[str, Any],
        validate: Callable[[Detector], dict[str, float | None]] | None,
        reporter: Progress,
    ) -> None:
        self.fabric, self.run, self.stream, self.config = fabric, run, stream, config
        self.directory, self.identity = directory, dict(identity)
        self.validate, self.reporter = validate, reporter
        self.average = WeightAverage(run.student, config.ema_decay, config.ema_ramp)
        self.steps = config.epochs * stream.steps_per_epoch
        self.rate = LearningRate(config, stream.steps_per_epoch)
        self.guard = TermGuard(run.distiller)
        self.progress = TrainingState()
        self.model, self.optimizer = fabric.setup(run, optimizer)
        self.average.detector.to(fabric.device)
        for teacher in run.teachers.values():
            teacher.to(fabric.device)
        self._interrupted = False

    def resume(self) -> None:
        """Continue from the last checkpoint of the run directory.

        Raises:
            RequestError: there is none, or it belongs to another run.
        """
        path = self.directory.last_checkpoint
        self.progress = restore(read_checkpoint(path), path, self.run, self.average, self.optimizer, self.identity)
        self.directory.truncate_log(self.progress.step)

    def fit(self) -> FitResult:
        """Train to the end.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; training stops after the current step and a checkpoint.
        """
        self.model.train()
        if self.progress.step == 0:
            self.save()  # from here on the run can be resumed, whenever it is killed
        with self._interrupts_deferred():
            clock = time.perf_counter()
            for batch in self._remaining_batches():
                self._step(batch)
                self.progress.train_seconds += time.perf_counter() - clock
                if self._epoch_ended():
                    self.progress.stopped = self._validate()
                # Not with accumulated gradients pending: they are in no checkpoint.
                interrupt = self._interrupted and self._update_due()
                if self._checkpoint_due() or self.progress.stopped or interrupt:
                    self.save()
                if interrupt:
                    raise KeyboardInterrupt
                if self.progress.stopped:
                    break
                clock = time.perf_counter()
        best = self.progress.best_ap if self.progress.best_ap >= 0 else None
        return FitResult(self.progress.step, self.progress.train_seconds, self._rate(), best, self.progress.stopped)

    def _remaining_batches(self) -> Iterator[ImageBatch]:
        """Return the batches from the current step on; none where patience had run out before a resume."""
        return iter(()) if self.progress.stopped else self.stream.batches(self.progress.step)

    @contextmanager
    def _interrupts_deferred(self) -> Iterator[None]:
        """Only record Ctrl-C: an interrupt within a step would leave a partial update in the weights."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def record(number: int, frame: object) -> None:
            self._interrupted = True

        before = signal.signal(signal.SIGINT, record)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _rate(self) -> float:
        """Return the images per second of training, over all resumes."""
        return self.progress.images / self.progress.train_seconds if self.progress.train_seconds else 0.0

    def save(self) -> None:
        """Write the last checkpoint (on the first process)."""
        self._save_to(self.directory.last_checkpoint)

    def _save_to(self, path: Path) -> None:
        if self.fabric.is_global_zero:
            optimizer = self.optimizer.optimizer
            save_checkpoint(path, self.run, self.average, optimizer, self.progress, self.identity)

    def _step(self, batch: ImageBatch) -> None:
        """Run one batch: forward, guard, backward and, when due, the optimiser."""
        step = self.progress.step
        epoch = step // self.stream.steps_per_epoch
        self.run.student.set_progress(epoch / max(self.config.epochs - 1, 1))
        lr = self.rate.apply(self.optimizer, step)
        images = batch.to(self.fabric.device, non_blocking=True).as_float()
        done = step / max(self.steps - 1, 1)
        active = self.run.distiller.active(done) if self.run.distiller else None
        probe = self._probe_due(step, active)
        step_terms = terms(self.model, images, probe, active)
        values = self.guard.check(step_terms, step)
        shares = self._probe(step_terms, step) if probe else {}
        weights = self.run.distiller.weights(done) if self.run.distiller else {}
        loss = step_terms.total(weights)
        # Terms are means per image; the gradient is that of their sum over the batch, for which learning
        # rate and clip norm of these detectors are tuned.
        self.fabric.backward(loss * self._scale(images))
        self.progress.step += 1
        if self._update_due():
            self._update(images, step)
        self.progress.images += len(batch) * self.fabric.world_size
        self._log(step, epoch, lr, float(loss.detach()), values, weights, shares)

    def _update(self, images: ImageBatch, step: int) -> None:
        """Do one optimiser step with the accumulated gradients."""
        try:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.config.clip_norm)
        except RuntimeError as error:
            raise TrainingError(self._explain(images, step)) from error
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.run.student)

    def _explain(self, images: ImageBatch, step: int) -> str:
        """Return the error that names the terms whose gradient is not finite, measured one by one."""
        norms = gradient_norms(terms(self.model, images, True), self.fabric.backward)
        names = [name for name, norm in norms.items() if not math.isfinite(norm)] or ["the sum of all terms"]
        return (
            f"step {step}: the gradient of {', '.join(names)} is not finite; lower train.lr, or train with "
            f"precision 32-true; the last checkpoint is untouched"
        )

    def _update_due(self) -> bool:
        """Return whether the optimiser steps now: every `accumulate` batches of an epoch, and at its end."""
        done = (self.progress.step - 1) % self.stream.steps_per_epoch + 1
        return done % self.config.accumulate == 0 or self._epoch_ended()

    def _scale(self, batch: ImageBatch) -> int:
        # DDP averages over processes; times their number it is the sum over the whole batch again.
        return (int(batch.labelled.sum()) or len(batch)) * self.fabric.world_size

    def _probe_due(self, step: int, active: frozenset[str] | None) -> bool:
        if self.run.distiller is None or active is None:
            return False
        waiting = step >= self.config.calibrate_at and not active.isdisjoint(self.run.distiller.awaits_calibration())
        return waiting or step % self.config.probe_every == 0

    def _probe(self, step_terms: StepTerms, step: int) -> dict[str, float]:
        """Return each term's share of the task's gradient at the neck; set ``auto`` weights when they are due."""
        distiller = self.run.distiller
        assert distiller is not None
        norms = gradient_norms(step_terms, self.fabric.backward)
        for name, loss in distiller.terms().items():
            if norms.get(name) == 0.0 and not loss.can_be_zero:
                raise TrainingError(
                    f"step {step}: the distillation term '{name}' has a gradient of exactly zero at the "
                    f"student's neck, so it has no effect. Run `kd-vision check`"
                )
        task = norms.get("task")
        if step >= self.config.calibrate_at and task:
            for name in distiller.awaits_calibration():
                if norms.get(name, 0.0) > 0.0 and math.isfinite(norms[name]) and math.isfinite(task):
                    distiller.calibrate(name, norms[name], task)
        weights = distiller.weights(step / max(self.steps - 1, 1))
        return {name: weights[name] * norms[name] / task for name in step_terms.distillation} if task else {}

    def _validate(self) -> bool:
        """Validate when it is due; return whether patience has run out."""
        epoch = self.progress.step // self.stream.steps_per_epoch
        every = self.config.validate_every
        if self.validate is None or not every or (epoch % every and self.progress.step < self.steps):
            return False
        measured = self.validate(self.average.detector) if self.fabric.is_global_zero else {}
        metrics: dict[str, float | None] = self.fabric.broadcast(measured)
        ap = metrics["AP"] or 0.0
        row = {"step": self.progress.step, "epoch": epoch, "split": "val", **metrics}
        self._write(row)
        if ap > self.progress.best_ap:
            self.progress.best_ap, self.progress.best_step, self.progress.stale = ap, self.progress.step, 0
            self._save_to(self.directory.best_checkpoint)
        else:
            self.progress.stale += 1
        return bool(self.config.patience) and self.progress.stale >= self.config.patience

    def _log(
        self,
        step: int,
        epoch: int,
        lr: float,
        total: float,
        values: Mapping[str, float],
        weights: Mapping[str, float],
        shares: Mapping[str, float],
    ) -> None:
        rate = self._rate()
        text = f"epoch {epoch + 1}/{self.config.epochs}  loss {total:.3f}  {rate:.1f} img/s"
        self.reporter.step(step + 1, self.steps, text)
        if step % self.config.log_every and not shares and step + 1 != self.steps:
            return
        row: dict[str, Any] = {"step": step + 1, "epoch": epoch, "split": "train", "lr": lr}
        row |= {"images_per_second": round(rate, 3), "loss/total": total}
        row |= {f"loss/{name}": value for name, value in values.items()}
        row |= {f"weight/{name}": value for name, value in weights.items()}
        row |= {f"share/{name}": value for name, value in shares.items()}
        self._write(row)

    def _write(self, row: dict[str, Any]) -> None:
        if self.fabric.is_global_zero:
            self.directory.append_log(row)
            numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
            self.fabric.log_dict({f"{row['split']}/{k}": v for k, v in numbers.items()}, step=row["step"])

    def _epoch_ended(self) -> bool:
        return self.progress.step % self.stream.steps_per_epoch == 0

    def _checkpoint_due(self) -> bool:
        if self.config.checkpoint_every and self.progress.step < self.steps:
            return self.progress.step % self.config.checkpoint_every == 0 and self._update_due()
        return self._epoch_ended()


def build_fabric(config: TrainConfig, loggers: list[Any]) -> Fabric:
    """Build and launch Fabric for the settings; the caller sets the seeds."""
    gpus = torch.cuda.device_count() if config.accelerator != "cpu" else 0
    many = config.num_nodes > 1 or (gpus if config.devices == "auto" else config.devices) > 1
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            precision=config.precision,
            strategy="ddp_find_unused_parameters_true" if many else "auto",
            loggers=loggers,
        )
        fabric.launch()
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        raise RequestError(
            f"train: accelerator {config.accelerator} with devices {config.devices} is not available on this machine "
            f"({first_line(error)}); "
            f"use accelerator auto and devices 1"
        ) from error
    if fabric.device.type == "cpu":
        keep_freed_memory()
    return fabric


def seed_everything(seed: int) -> None:
    """Seed the initialisation of weights; the data loader derives its seeds from the same number."""
    torch.manual_seed(seed)
