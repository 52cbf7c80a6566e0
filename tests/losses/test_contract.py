"""What holds for every loss of the table."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kd_vision.core.batch import PseudoLabels, Targets
from kd_vision.core.errors import RequestError
from kd_vision.core.predictions import (
    ONE_TO_MANY,
    ONE_TO_ONE,
    DetectorOutput,
    GridPredictions,
    RawPredictions,
    Signal,
    Signals,
)
from kd_vision.core.spec import DetectorSpec
from kd_vision.core.validation import validate
from kd_vision.losses import LOSSES, load_loss
from kd_vision.losses.base import DistillationLoss, LossConfig
from kd_vision.losses.distiller import Distiller
from kd_vision.losses.features import FeatureLoss, aligned
from kd_vision.losses.grid import GridLoss

Pair = tuple[DetectorSpec, DetectorSpec]
MakeSide = Callable[..., Signals]

WITH_ADAPTERS = {"feature_mse", "feature_pkd", "feature_cwd", "feature_sl2"}
# The others have another minimum: hard labels, weighted classes, a projector from scratch, final boxes that differ
# from the grid, and an order whose gaps can always be wider.
ZERO_AT_EQUALITY = set(LOSSES) - {"hinton", "class_weighted_soft", "feature_sl2", "soft_boxes", "rank_pairs"}
# Unbiased deviations over the batch: doubling it changes n - 1, so only nearly independent of its size.
BATCH_STATISTICS = {"feature_pkd", "feature_cwd"}
WITH_LEVELS = {name for name in LOSSES if load_loss(name).uses_levels}
ON_MAPS = {name for name in LOSSES if "features" in load_loss(name).requires}
# Losses that read a grid and yet see the one-to-many branch alone.
ONE_BRANCH = {"feature_sl2"}
# CIoU takes one of its factors as a constant, so its gradient is not that of its value.
SMOOTH: dict[str, dict[str, object]] = {"soft_boxes": {"kind": "giou"}}
every_loss = pytest.mark.parametrize("name", sorted(LOSSES))
every_loss_with_levels = pytest.mark.parametrize("name", sorted(WITH_LEVELS))
every_loss_on_predictions = pytest.mark.parametrize("name", sorted(set(LOSSES) - ON_MAPS))
every_class_aware_loss = pytest.mark.parametrize("name", sorted(name for name in LOSSES if load_loss(name).class_aware))


def build(name: str, pair: Pair, **settings: object) -> DistillationLoss:
    torch.manual_seed(0)
    kind = load_loss(name)
    config = validate(kind.Config, settings, "test")
    assert kind.incompatibilities(config, *pair) == []
    return kind(config, *pair).double()


def leaves(side: Signals) -> list[Tensor]:
    """All tensors of a side that a loss may have a gradient at, made to require gradients."""
    assert side.grid is not None
    assert side.grid.box_bins is not None
    tensors = [*side.features.values(), side.grid.logits, side.grid.boxes_xyxy, side.grid.box_bins]
    return [tensor.requires_grad_() for tensor in tensors]


def changed(side: Signals, change: Callable[[Tensor], Tensor]) -> Signals:
    """The same side with every tensor replaced."""
    grid = side.grid
    assert grid is not None
    assert grid.box_bins is not None
    new = replace(
        grid,
        logits=change(grid.logits),
        boxes_xyxy=change(grid.boxes_xyxy),
        box_bins=change(grid.box_bins),
    )
    return on_grid(replace(side, features={level: change(maps) for level, maps in side.features.items()}), new)


def on_grid(side: Signals, grid: GridPredictions) -> Signals:
    """The same side with another grid, and all that is computed from it."""
    assign, refine = replace(side.assign, grid=grid), replace(side.refine_regions, grid=grid)
    rows = RawPredictions(grid.logits, grid.boxes_xyxy, grid.points_xy[None], None, grid.box_bins, grid.strides)
    return replace(side, grid=grid, assign=assign, raw_predictions=lambda: rows, refine_regions=refine)


def grid_of(side: Signals) -> GridPredictions:
    assert side.grid is not None
    return side.grid


def test_importing_the_table_loads_no_torch() -> None:
    code = "import sys, kd_vision.losses as room; sys.exit('torch' in sys.modules or len(room.LOSSES) < 17)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_unknown_loss_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RequestError) as caught:
        load_loss("class_bec")
    assert caught.value.problems == ("loss 'class_bec' is unknown; did you mean 'class_bce'?",)


@every_loss
def test_one_loss_is_one_file_one_line_one_test(name: str) -> None:
    kind = load_loss(name)
    assert kind.__module__ == f"kd_vision.losses.{name}"
    assert issubclass(kind, DistillationLoss)
    assert (Path(__file__).parent / f"test_{name}.py").is_file()
    assert "\n" not in LOSSES[name].summary
    for word in ("Shapes:", "Reduction:", "Source:"):
        assert kind.__doc__ is not None
        assert word in kind.__doc__
    weight = kind.Config().weight
    assert isinstance(weight, float)
    assert weight > 0


@every_loss
def test_config_refuses_unknown_keys_and_bad_weights(name: str) -> None:
    config = load_loss(name).Config
    with pytest.raises(RequestError) as caught:
        validate(config, {"weigth": 1.0, "levels": ["P3"]}, "run.yaml")
    assert caught.value.problems == ("run.yaml: weigth: unknown key; did you mean 'weight'?",)
    for bad in (-1.0, float("nan"), float("inf"), "strong"):
        with pytest.raises(RequestError, match=r"^run\.yaml: "):
            validate(config, {"weight": bad}, "run.yaml")
    assert validate(config, {"weight": "auto"}, "run.yaml").weight == "auto"


@pytest.mark.parametrize(
    "name", [name for name in sorted(LOSSES) if "temperature" in load_loss(name).Config.model_fields]
)
def test_temperature_must_be_positive_and_finite(name: str) -> None:
    config = load_loss(name).Config
    for bad in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(RequestError, match="temperature"):
            validate(config, {"temperature": bad}, "run.yaml")


@every_loss
def test_gradient_is_exact_and_leads_downhill(name: str, specs: Pair, make_side: MakeSide, targets: Targets) -> None:
    loss = build(name, specs, **SMOOTH.get(name, {}))
    student, teacher = make_side(specs[0], 1), make_side(specs[1], 2)
    inputs = leaves(student)
    value = loss(student, teacher, targets)
    assert value.shape == ()
    assert torch.isfinite(value)
    assert value > 0
    gradients = torch.autograd.grad(value, inputs, allow_unused=True)
    slope = sum(float(g.square().sum()) for g in gradients if g is not None)
    assert slope > 0
    step = 1e-6 / slope**0.5

    def moved(sign: int) -> float:
        by_leaf = {
            id(x): (x if g is None else x + sign * step * g).detach() for x, g in zip(inputs, gradients, strict=True)
        }
        return float(loss(changed(student, lambda x: by_leaf[id(x)]), teacher, targets))

    assert (moved(1) - moved(-1)) / (2 * step) == pytest.approx(slope, rel=1e-4)
    assert moved(-1) < value.item()


@every_loss
def test_teacher_gets_no_gradient(name: str, specs: Pair, make_side: MakeSide, targets: Targets) -> None:
    student, teacher = make_side(specs[0], 1), make_side(specs[1], 2)
    leaves(student)
    of_teacher = leaves(teacher)
    build(name, specs)(student, teacher, targets).backward()
    assert all(tensor.grad is None for tensor in of_teacher)


@every_loss
def test_batch_without_objects_is_finite(name: str, specs: Pair, make_side: MakeSide, no_targets: Targets) -> None:
    student, teacher = make_side(specs[0], 1), make_side(specs[1], 2)
    background = replace(grid_of(teacher), logits=torch.full_like(grid_of(teacher).logits, -200.0))
    inputs = leaves(student)
    assert teacher.pseudo_labels is not None
    no_boxes = teacher.pseudo_labels.take(teacher.pseudo_labels.scores > 1)
    value = build(name, specs)(student, replace(on_grid(teacher, background), pseudo_labels=no_boxes), no_targets)
    gradients = torch.autograd.grad(value, inputs, allow_unused=True)
    assert torch.isfinite(value)
    assert any(g is not None for g in gradients)
    assert all(bool(torch.isfinite(g).all()) for g in gradients if g is not None)


@every_loss
def test_value_does_not_depend_on_the_batch_size(name: str, specs: Pair, make_side: MakeSide, targets: Targets) -> None:
    loss = build(name, specs)
    student, teacher = make_side(specs[0], 1), make_side(specs[1], 2)
    twice = Targets(
        torch.cat([targets.image_index, targets.image_index + 2]),
        targets.labels.repeat(2),
        targets.boxes_xyxy.repeat(2, 1),
    )

    def doubled(x: Tensor) -> Tensor:
        return torch.cat([x, x])

    pseudo_labels = teacher.pseudo_labels
    assert pseudo_labels is not None
    moved = replace(pseudo_labels, image_index=pseudo_labels.image_index + 2)
    again = PseudoLabels(
        *(torch.cat([getattr(pseudo_labels, f.name), getattr(moved, f.name)]) for f in fields(pseudo_labels))
    )
    single = float(loss(student, teacher, targets).detach())
    double = float(
        loss(changed(student, doubled), replace(changed(teacher, doubled), pseudo_labels=again), twice).detach()
    )
    assert double == pytest.approx(single, rel=2e-2 if name in BATCH_STATISTICS else 1e-7)


@every_loss
def test_missing_signal_is_named(name: str, specs: Pair) -> None:
    kind = load_loss(name)
    for signal in kind.requires:
        lacking = replace(specs[1], provides=specs[1].provides - {signal})
        assert kind.incompatibilities(kind.Config(), specs[0], lacking) == [
            f"needs the signal '{signal}', which the teacher large does not provide"
        ]


@every_loss_with_levels
def test_unknown_level_is_named(name: str, specs: Pair) -> None:
    kind = load_loss(name)
    config = validate(kind.Config, {"levels": ["P4", "P9"]}, "test")
    assert kind.incompatibilities(config, *specs)[:2] == [
        "level 'P9' is not among the teacher's: P3, P4",
        "level 'P9' is not among the student's: P3, P4",
    ]


@every_loss
def test_half_precision_is_computed_in_float32(name: str, specs: Pair, make_side: MakeSide, targets: Targets) -> None:
    loss = build(name, specs).float()
    student = make_side(specs[0], 1, dtype=torch.bfloat16)
    teacher = make_side(specs[1], 2, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = loss(student, teacher, targets)
    full = loss(changed(student, Tensor.float), changed(teacher, Tensor.float), targets)
    assert half.dtype == full.dtype == torch.float32
    assert float(half.detach()) == pytest.approx(float(full.detach()), rel=1e-6)


@every_loss
def test_adapters_belong_to_the_loss_and_all_learn(
    name: str, specs: Pair, make_side: MakeSide, targets: Targets
) -> None:
    loss = build(name, specs)
    assert bool(list(loss.parameters())) == (name in WITH_ADAPTERS)
    student, teacher = make_side(specs[0], 1), make_side(specs[1], 2)
    leaves(student)
    loss(student, teacher, targets).backward()
    for parameter_name, parameter in loss.named_parameters():
        # The level both sides have in equal width needs no linear adapter.
        assert name == "feature_sl2" or "P3" in parameter_name
        assert parameter.grad is not None, parameter_name
        assert float(parameter.grad.abs().max()) > 1e-9, parameter_name


@pytest.mark.parametrize("name", sorted(ZERO_AT_EQUALITY))
def test_zero_at_equality(name: str, specs: Pair, make_side: MakeSide, targets: Targets) -> None:
    side = make_side(specs[1], 3)
    loss = build(name, (specs[1], specs[1]))
    assert float(loss(side, side, targets)) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - WITH_LEVELS))
def test_losses_on_rows_refuse_levels(name: str, specs: Pair) -> None:
    kind = load_loss(name)
    config = validate(kind.Config, {"levels": ["P4"]}, "test")
    assert kind.incompatibilities(config, *specs) == ["levels: acts on all rows of the head; leave it out"]


@every_class_aware_loss
def test_classes_must_agree_by_name(name: str, specs: Pair) -> None:
    kind = load_loss(name)
    swapped = replace(specs[1], classes=("car", "person", "bus"))
    assert kind.incompatibilities(kind.Config(), specs[0], swapped) == [
        "needs the same classes in the same order; teacher has 'car', 'person', 'bus', student 'car', 'bus', 'person'; "
        "map the teacher's with 'labels'"
    ]


@every_loss
def test_no_level_at_all_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="levels: tuple should have at least 1 item"):
        validate(load_loss(name).Config, {"levels": []}, "test")


@every_loss_on_predictions
def test_no_gradient_on_classes_that_the_teacher_never_learned(
    name: str, specs: Pair, make_side: MakeSide, targets: Targets
) -> None:
    """It never learned "bus": neither that column nor the bus of image 1 (20..50, 8..40) has a gradient."""
    unlearned = replace(specs[1], missing_classes=frozenset({"bus"}))
    kind = load_loss(name)
    assert kind.pair_warnings(kind.Config(), specs[0], specs[1]) == []
    assert kind.pair_warnings(kind.Config(), specs[0], unlearned) == [
        "the teacher never learned 'bus': this term skips them"
    ]
    student, teacher = make_side(specs[0], 1), make_side(specs[1], 2)
    inputs = leaves(student)
    loss = build(name, (specs[0], unlearned))
    assert loss.can_be_zero
    assert loss.state_dict() == {}
    value = loss(student, teacher, targets)
    gradients = torch.autograd.grad(value, inputs, allow_unused=True)
    points = grid_of(student).points_xy
    inside = ((points > torch.tensor([20.0, 8.0])) & (points < torch.tensor([50.0, 40.0]))).all(dim=-1)
    for gradient in (g for g in gradients if g is not None):
        assert float(gradient[1, inside].abs().max()) == 0.0
        assert float(gradient.abs().max()) > 0.0
    logits = gradients[2]
    if logits is not None:
        assert float(logits[..., 1].abs().max()) == 0.0


@every_loss_with_levels
def test_levels_not_chosen_take_no_part(name: str, specs: Pair, make_side: MakeSide, targets: Targets) -> None:
    loss = build(name, specs, levels=["P4"])
    student, teacher = make_side(specs[0], 1), make_side(specs[1], 2)
    inputs = leaves(student)
    gradients = torch.autograd.grad(loss(student, teacher, targets), inputs, allow_unused=True)
    assert gradients[0] is None, "P3 features"
    dense = [g for g in gradients[2:] if g is not None]
    assert bool(dense) == (not name.startswith("feature"))
    fine = grid_of(student).strides == 8
    for gradient in dense:
        assert float(gradient[:, fine].abs().max()) == 0.0
        assert float(gradient[:, ~fine].abs().max()) > 0.0
    assert not any("P3" in key for key, _ in loss.named_parameters())


@every_loss_with_levels
def test_student_with_one_more_level(name: str, specs: Pair, make_side: MakeSide, targets: Targets) -> None:
    """A P2 head learns on the levels that both sides have, exactly as if it had no P2."""
    student, teacher = make_side(specs[0], 1), make_side(specs[1], 2)
    wide_spec = replace(
        specs[0], level_channels={"P2": 2, "P3": 3, "P4": 6}, level_strides={"P2": 4, "P3": 8, "P4": 16}
    )
    wide = make_side(wide_spec, 5)
    grid, extra = grid_of(student), grid_of(wide).strides == 4
    assert grid.box_bins is not None
    assert grid_of(wide).box_bins is not None

    def joined(first: Tensor | None, second: Tensor | None, at: int) -> Tensor:
        assert first is not None
        assert second is not None
        return torch.cat([first.movedim(at, 0)[extra], second.movedim(at, 0)]).movedim(0, at)

    more = Signals(
        {"P2": wide.features["P2"], **student.features},
        GridPredictions(
            joined(grid_of(wide).logits, grid.logits, 1),
            joined(grid_of(wide).boxes_xyxy, grid.boxes_xyxy, 1),
            joined(grid_of(wide).points_xy, grid.points_xy, 0),
            joined(grid_of(wide).strides, grid.strides, 0),
            joined(grid_of(wide).box_bins, grid.box_bins, 1),
        ),
    )
    expected = build(name, specs)(student, teacher, targets)
    value = build(name, (wide_spec, specs[1]))(more, teacher, targets)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)


@every_loss
def test_module_path_and_class_agree_with_the_table(name: str) -> None:
    module, _, attribute = LOSSES[name].path.partition(":")
    assert getattr(importlib.import_module(module), attribute) is load_loss(name)


@every_loss
def test_a_label_map_that_ignores_classes_is_refused_or_honoured_or_warned_of(name: str, specs: Pair) -> None:
    kind = load_loss(name)
    one, two = replace(specs[1], ignored=frozenset({"dog"})), replace(specs[1], ignored=frozenset({"dog", "cat"}))
    assert kind.honours_ignored == (name in {"soft_boxes", "rank_pairs"})
    refused = not kind.honours_ignored and name not in ON_MAPS
    text = (
        "the label map ignores {}, which only losses on final boxes support; use soft_boxes, or map to 'drop' instead "
        "of 'ignore'"
    )
    config = kind.Config()
    assert kind.incompatibilities(config, specs[0], one) == ([text.format("'dog'")] if refused else [])
    assert kind.incompatibilities(config, specs[0], two) == ([text.format("'cat', 'dog'")] if refused else [])
    warning = ["acts on whole feature maps, including objects that the label map ignores ('dog')"]
    assert kind.pair_warnings(config, specs[0], one) == (warning if name in ON_MAPS else [])


@pytest.mark.parametrize("name", sorted(ON_MAPS))
def test_losses_on_maps_warn_of_classes_that_the_teacher_never_learned(name: str, specs: Pair) -> None:
    kind = load_loss(name)
    assert kind.pair_warnings(kind.Config(), *specs) == []
    assert kind.pair_warnings(kind.Config(), specs[0], replace(specs[1], missing_classes=frozenset({"bus"}))) == [
        "acts on whole feature maps, including objects of classes that the teacher never learned ('bus')"
    ]


def test_declarations_are_consistent() -> None:
    """A new loss on a grid must declare whether it runs on both branches; `GridLoss` and `FeatureLoss` do."""
    for name in LOSSES:
        kind = load_loss(name)
        assert kind.requires, name
        assert not kind.requires & kind.optional, name
        assert kind.per_branch == ("grid" in kind.requires and name not in ONE_BRANCH), name
        assert kind.per_branch == issubclass(kind, GridLoss), name
        assert kind.class_aware != issubclass(kind, FeatureLoss), name
        assert kind.uses_levels == bool(kind.requires & {"features", "grid"}), name


@pytest.mark.parametrize("name", sorted(name for name in LOSSES if not load_loss(name).class_aware))
def test_losses_that_are_not_class_aware_take_a_teacher_of_other_classes(
    name: str, specs: Pair, make_side: MakeSide, targets: Targets
) -> None:
    kind = load_loss(name)
    other = replace(specs[1], classes=("tree",))
    assert kind.incompatibilities(kind.Config(), specs[0], other) == []
    student, teacher = make_side(specs[0], 1), make_side(specs[1], 2)
    expected = build(name, specs)(student, teacher, targets)
    assert float(build(name, (specs[0], other))(student, teacher, targets).detach()) == float(expected.detach())


def output_of(side: Signals, signals: frozenset[Signal], one_to_one: Signals) -> DetectorOutput:
    """A detector's output with the signals that it was asked for, and two branches of its head."""
    regions, boxes = "regions" in signals, "detections" in signals
    return DetectorOutput(
        features=side.features if "features" in signals else {},
        grids={ONE_TO_MANY: grid_of(side), ONE_TO_ONE: grid_of(one_to_one)} if "grid" in signals else {},
        branch_weights={ONE_TO_MANY: 0.7, ONE_TO_ONE: 0.3},
        pseudo_labels=side.pseudo_labels if boxes else None,
        assign=side.assign if boxes else None,
        raw_predictions=side.raw_predictions if regions else None,
        refine_regions=side.refine_regions if regions else None,
    )


ALL_SIGNALS: frozenset[Signal] = frozenset({"features", "grid", "regions", "detections"})


@every_loss
def test_value_does_not_depend_on_the_other_terms(
    name: str, specs: Pair, make_side: MakeSide, targets: Targets
) -> None:
    """Alone, beside all others, and beside others whose schedule has closed; image 1 has no ground truth."""
    unlabelled = Targets(targets.image_index[:2], targets.labels[:2], targets.boxes_xyxy[:2])
    sides = [make_side(spec, seed) for seed, spec in enumerate((specs[0], specs[1], specs[0], specs[1]))]

    def value(names: list[str], active: frozenset[str] | None) -> Tensor:
        distiller = Distiller({each: build(each, specs) for each in names})
        student = output_of(sides[0], distiller.requires(active), sides[2])
        asked = distiller.required_signals(active)["teacher"]
        return distiller(student, {"teacher": output_of(sides[1], asked, sides[3])}, unlabelled, active)[name]

    alone = value([name], None)
    assert float(alone.detach()) > 0
    assert torch.equal(value(sorted(LOSSES), None), alone)
    assert torch.equal(value(sorted(LOSSES), frozenset({name})), alone)


@every_loss
def test_every_declared_signal_is_read_and_no_other(
    name: str, specs: Pair, make_side: MakeSide, targets: Targets
) -> None:
    loss = build(name, specs)
    student, teacher, other = (make_side(spec, seed) for spec, seed in zip((*specs, specs[1]), (1, 2, 3), strict=True))

    def value(of_student: frozenset[Signal], of_teacher: frozenset[Signal]) -> Tensor:
        outputs = output_of(student, of_student, other), output_of(teacher, of_teacher, other)
        return loss(outputs[0].signals(), outputs[1].signals(), targets)

    assert torch.equal(value(loss.requires, loss.teacher_signals), value(ALL_SIGNALS, ALL_SIGNALS))
    for signal in loss.teacher_signals:
        with pytest.raises(RequestError, match=f"the signal '{signal}' of the (student|teacher) was not computed"):
            value(loss.requires - {signal}, loss.teacher_signals - {signal})


def test_optional_signals_are_asked_of_a_teacher_that_provides_them(specs: Pair) -> None:
    """Whatever other terms run; the student need not provide them."""
    student = replace(specs[0], provides=frozenset({"grid"}))
    for provides, asked in ((ALL_SIGNALS, {"grid", "detections"}), (frozenset({"grid"}), {"grid"})):
        distiller = Distiller({"order": build("rank_list", (student, replace(specs[1], provides=provides)))})
        assert distiller.required_signals() == {"teacher": asked}
        assert distiller.requires() == {"grid"}
        assert distiller.required_signals(frozenset()) == {}


FIELDS: dict[Signal, set[str]] = {
    "features": {"features"},
    "grid": {"grid"},
    "detections": {"pseudo_labels", "assign"},
    "regions": {"raw_predictions", "refine_regions"},
}


@pytest.mark.parametrize("signal", sorted(FIELDS))
@pytest.mark.parametrize("by_option", [False, True])
def test_a_loss_is_given_the_signals_that_it_declares_and_no_other(
    signal: Signal, by_option: bool, specs: Pair, make_side: MakeSide, targets: Targets
) -> None:
    given: list[Signals] = []

    class Spy(DistillationLoss):
        requires = frozenset() if by_option else frozenset({signal})
        optional = frozenset({signal}) if by_option else frozenset()

        def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
            given.extend((student, teacher))
            return torch.zeros(())

    side = make_side(specs[1], 2)
    output = output_of(side, ALL_SIGNALS, side)
    Distiller({"spy": Spy(LossConfig(), *specs)})(output, {"teacher": output}, targets)
    for seen, allowed in zip(given, (set() if by_option else FIELDS[signal], FIELDS[signal]), strict=True):
        for field in fields(Signals):
            value = getattr(seen, field.name)
            assert value is getattr(side, field.name) if field.name in allowed else not value


def test_reading_an_undeclared_signal_raises(specs: Pair, make_side: MakeSide, targets: Targets) -> None:
    class ReadsFeatures(DistillationLoss):
        requires = frozenset({"grid"})

        def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
            student_map, teacher_map = aligned("P4", student, teacher)
            return (student_map - teacher_map).square().mean()

    side = make_side(specs[1], 2)
    loss, output = ReadsFeatures(LossConfig(), specs[1], specs[1]), output_of(side, ALL_SIGNALS, side)
    assert float(loss(side, side, targets)) == 0.0
    text = "the signal 'features' of the teacher was not computed; list it in the loss's 'requires'"
    with pytest.raises(RequestError, match=text):
        Distiller({"reader": loss})(output, {"teacher": output}, targets)


class MeanLogit(DistillationLoss):
    """Mean of the student's logits; one branch unless a subclass declares otherwise."""

    requires = frozenset({"grid"})

    def forward(self, student: Signals, teacher: Signals, targets: Targets) -> Tensor:
        return grid_of(student).logits.mean()


class MeanLogitOfBranches(MeanLogit):
    per_branch = True


def test_per_branch_is_declared_and_not_derived(specs: Pair, make_side: MakeSide, targets: Targets) -> None:
    """Weights .7 and .3 of two branches, against the one-to-many branch alone."""
    many, one = make_side(specs[0], 1), make_side(specs[0], 2)
    output = output_of(many, ALL_SIGNALS, one)
    terms = Distiller({"single": MeanLogit(LossConfig(), *specs), "both": MeanLogitOfBranches(LossConfig(), *specs)})(
        output, {"teacher": output}, targets
    )
    means = float(grid_of(many).logits.mean()), float(grid_of(one).logits.mean())
    assert float(terms["single"]) == means[0]
    assert float(terms["both"]) == pytest.approx(0.7 * means[0] + 0.3 * means[1], rel=1e-12)
    lone = replace(output, grids={ONE_TO_MANY: grid_of(many)})
    both = Distiller({"both": MeanLogitOfBranches(LossConfig(), *specs)})(output, {"teacher": lone}, targets)["both"]
    assert float(both) == pytest.approx(means[0], rel=1e-12)
