"""Schedule, moving average and parameter groups against hand-computed numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kd_vision.detectors.ultralytics.config import UltralyticsConfig
from kd_vision.detectors.ultralytics.family import build
from kd_vision.engine.config import TrainConfig
from kd_vision.engine.ema import WeightAverage
from kd_vision.engine.optimizer import LearningRate, build_optimizer


def test_learning_rate_by_hand() -> None:
    rate = LearningRate(TrainConfig(epochs=10, warmup_epochs=2, final_lr=0.1), steps_per_epoch=4)
    assert rate.factor(0) == 0.0
    assert rate.factor(4) == pytest.approx(0.5 * 0.91)  # epoch 1: 0.1 + 0.9 * 0.9, halfway through warm-up
    assert rate.factor(8) == pytest.approx(0.82)  # epoch 2, warm-up over
    assert rate.factor(39) == pytest.approx(0.19)  # epoch 9
    cosine = LearningRate(TrainConfig(epochs=10, warmup_epochs=0, final_lr=0.1, lr_schedule="cosine"), 4)
    assert cosine.factor(20) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)


def test_auto_optimizer_takes_the_fitted_rate_and_spares_biases_and_norms() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = build_optimizer([net], TrainConfig(), steps=325, classes=3)
    assert type(optimizer).__name__ == "AdamW"
    assert optimizer.param_groups[0]["lr"] == round(0.002 * 5 / 7, 6)
    decayed = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert decayed == {id(net[0].weight)}
    assert optimizer.param_groups[1]["weight_decay"] == 0.0
    assert type(build_optimizer([net], TrainConfig(), steps=20_000, classes=3)).__name__ == "SGD"


def test_sgd_with_momentum_is_nesterovs_and_without_it_is_plain() -> None:
    """Torch refuses Nesterov's step without momentum."""

    def one_step(momentum: float) -> tuple[torch.optim.Optimizer, float]:
        net = nn.Linear(1, 1, bias=False)
        nn.init.ones_(net.weight)
        config = TrainConfig(optimizer="sgd", lr=0.1, momentum=momentum, weight_decay=0.0)
        optimizer = build_optimizer([net], config, steps=10, classes=3)
        net(torch.ones(1, 1)).sum().backward()  # gradient 1
        optimizer.step()
        return optimizer, float(net.weight.detach())

    optimizer, weight = one_step(0.0)
    assert optimizer.param_groups[0]["nesterov"] is False
    assert weight == pytest.approx(1 - 0.1)
    optimizer, weight = one_step(0.9)
    assert optimizer.param_groups[0]["nesterov"] is True
    assert weight == pytest.approx(1 - 0.1 * (1 + 0.9))  # the gradient, and 0.9 of the first velocity


def test_moving_average_by_hand() -> None:
    detector = build(UltralyticsConfig(model="yolov8n"), ("a",), "student")
    average = WeightAverage(detector, decay=0.9, ramp=2.0)
    name, parameter = next(iter(detector.named_parameters()))
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter += 1.0
    average.update(detector)
    decay = 0.9 * (1 - math.exp(-1 / 2))
    expected = decay * before + (1 - decay) * (before + 1)
    torch.testing.assert_close(dict(average.detector.named_parameters())[name], expected, atol=1e-6, rtol=0)
    assert not any(p.requires_grad for p in average.detector.parameters())
