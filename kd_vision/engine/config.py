"""Settings of the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from kd_vision.core.validation import StrictModel
from kd_vision.engine.loggers import AUTO, unknown_loggers


class TrainConfig(StrictModel):
    """How long, with what optimiser, on what hardware.

    Attributes:
        epochs: passes over the labelled images.
        batch_size: labelled images per step and device.
        label_fraction: share of the training images whose labels are used, the same images for every seed;
            the others join the unlabelled images. 0: no label is used, every batch is unlabelled.
        unlabelled_ratio: unlabelled images per labelled one in every batch; 0: none.
        accumulate: batches whose gradients are summed before one optimiser step.
        optimizer: `auto`: AdamW up to 10000 steps, SGD above.
        lr: peak learning rate; None: 0.002 * 5 / (4 + classes) for AdamW, 0.01 for SGD, as in ultralytics.
        momentum: SGD momentum, AdamW's beta1.
        weight_decay: on convolution and linear weights only.
        warmup_epochs: learning rate rises from 0 over these.
        lr_schedule: shape of the decay to `final_lr`.
        final_lr: share of `lr` at the end.
        clip_norm: gradients above this L2 norm are scaled to it.
        ema_decay: decay of the moving average of the weights, which is what is saved.
        ema_ramp: steps over which the decay rises to its value.
        precision: of the forward and backward pass. fp16 is not offered: its loss scale would have to be
            part of an exact resume; bf16 needs none.
        accelerator, devices, num_nodes: as in Lightning Fabric.
        seed: of weights, data order and augmentation.
        workers: loader processes; `auto`: number of cores minus one, at most 8.
        cache: keep decoded images in memory; `auto`: where they fit into a quarter of the free memory.
        validate_every: epochs between validations (the last epoch is always one); 0: none.
        patience: validations without a better AP before training stops; 0: never.
        keep: weights in `student.pt`: the best on validation, or the last.
        log_every: steps between log lines.
        probe_every: steps between measurements of each term's gradient share.
        calibrate_at: step at which ``weight: auto`` is set.
        checkpoint_every: steps between checkpoints; 0: at the end of every epoch.
        loggers: training loggers in addition to ``metrics.jsonl``: `auto` (TensorBoard where it is installed),
            `tensorboard`, `csv`, `wandb`, `mlflow`; one name or a list, empty: none.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"labelled_share": "label_fraction"}

    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=16, ge=1)
    label_fraction: float = Field(default=1.0, ge=0.0, le=1.0)
    unlabelled_ratio: float = Field(default=0.0, ge=0.0)
    accumulate: int = Field(default=1, ge=1)
    optimizer: Literal["auto", "adamw", "sgd"] = "auto"
    lr: float | None = Field(default=None, gt=0.0)
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=0.0005, ge=0.0)
    warmup_epochs: float = Field(default=3.0, ge=0.0)
    lr_schedule: Literal["linear", "cosine"] = "linear"
    final_lr: float = Field(default=0.01, gt=0.0, le=1.0)
    clip_norm: float = Field(default=10.0, gt=0.0)
    ema_decay: float = Field(default=0.9999, ge=0.0, lt=1.0)
    ema_ramp: float = Field(default=2000.0, gt=0.0)
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    num_nodes: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)
    workers: int | Literal["auto"] = "auto"
    cache: Literal["auto", "ram", "none"] = "auto"
    validate_every: int = Field(default=1, ge=0)
    patience: int = Field(default=0, ge=0)
    keep: Literal["best", "last"] = "best"
    log_every: int = Field(default=10, ge=1)
    probe_every: int = Field(default=100, ge=1)
    calibrate_at: int = Field(default=20, ge=0)
    checkpoint_every: int = Field(default=0, ge=0)
    loggers: tuple[str, ...] = (AUTO,)

    @field_validator("loggers", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @field_validator("loggers")
    @classmethod
    def _in_the_table(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if errors := unknown_loggers(names):
            raise ValueError("; ".join(errors))
        return names

    @model_validator(mode="after")
    def _validation_is_on_where_needed(self) -> TrainConfig:
        if self.keep == "best" and self.validate_every == 0:
            raise ValueError("keep: best needs validation; set validate_every to 1 or more, or keep to last")
        if self.patience and self.validate_every == 0:
            raise ValueError("patience waits for validation; set validate_every to 1 or more, or patience to 0")
        return self
