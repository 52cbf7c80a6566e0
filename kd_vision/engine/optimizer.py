"""Optimiser and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from kd_vision.engine.config import TrainConfig

_LONG_RUN = 10_000


def build_optimizer(modules: Iterable[nn.Module], config: TrainConfig, steps: int, classes: int) -> Optimizer:
    """Build the optimiser over every trainable parameter of `modules`.

    Biases and normalisation weights get no decay.

    Args:
        modules: the student, and the adaptation layers of the losses.
        config: settings.
        steps: optimiser steps of the whole run, for ``auto``.
        classes: number of classes, for the fitted learning rate.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in modules:
        for child in module.modules():
            for name, parameter in child.named_parameters(recurse=False):
                if not parameter.requires_grad:
                    continue
                no_decay = name == "bias" or parameter.ndim <= 1
                (plain if no_decay else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    use_sgd = config.optimizer == "sgd" or (config.optimizer == "auto" and steps > _LONG_RUN)
    if use_sgd:
        return SGD(groups, lr=config.lr or 0.01, momentum=config.momentum, nesterov=config.momentum > 0)
    fitted = round(0.002 * 5 / (4 + classes), 6)
    fused = torch.cuda.is_available() and config.accelerator != "cpu"
    return AdamW(groups, lr=config.lr or fitted, betas=(config.momentum, 0.999), fused=fused or None)


class LearningRate:
    """Learning rate with warm-up and decay; a function of the step alone, so that a resume needs no state.

    Args:
        config: settings.
        steps_per_epoch: batches of an epoch; the rate counts batches.
    """

    def __init__(self, config: TrainConfig, steps_per_epoch: int) -> None:
        self.config = config
        self.epochs = config.epochs
        self.steps_per_epoch = steps_per_epoch
        warm = min(config.warmup_epochs, max(config.epochs - 1, 0))
        self.warmup = round(warm * steps_per_epoch)

    def factor(self, step: int) -> float:
        """Return the multiplier of the peak rate at `step` (0-based)."""
        epoch = min(step // self.steps_per_epoch, self.epochs - 1)
        done = epoch / self.epochs
        low = self.config.final_lr
        if self.config.lr_schedule == "cosine":
            decay = low + (1.0 - low) * (1.0 + math.cos(math.pi * done)) / 2.0
        else:
            decay = low + (1.0 - low) * (1.0 - done)
        return decay * min(1.0, step / self.warmup) if self.warmup else decay

    def apply(self, optimizer: Optimizer, step: int) -> float:
        """Set the rate of every group for `step` and return it."""
        factor = self.factor(step)
        for group in optimizer.param_groups:
            group.setdefault("peak_lr", group["lr"])
            group["lr"] = group["peak_lr"] * factor
        return float(optimizer.param_groups[0]["lr"])
