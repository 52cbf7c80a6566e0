"""Means, spreads, gains and costs as text, checked against hand-computed numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kd_vision.evaluation.metrics import Metrics
from kd_vision.report.benchmark_data import BenchmarkData
from kd_vision.report.tables import (
    Cell,
    Table,
    class_table,
    classes_to_show,
    cost_table,
    metrics_table,
    result_table,
    seed_table,
)

Build = Callable[..., BenchmarkData]


def row(table: Table, name: str) -> dict[str, str]:
    cells = dict(table.rows)[name]
    return dict(zip(table.columns[1:], (cell.text for cell in cells), strict=True))


def test_means_deviations_and_paired_gains(benchmark: Build) -> None:
    # plain 45, 46, 47: mean 46, sd 1. distilled 52, 51, 53: mean 52, sd 1.
    # Paired differences 7, 5, 6: mean 6, sd 1 (the difference of unpaired runs would scatter by 1.4).
    table = result_table(benchmark([0.45, 0.46, 0.47], [0.52, 0.51, 0.53]))
    assert row(table, "AP") == {
        "teacher": "61.4",
        "plain": "46.0 ± 1.0",
        "distilled": "52.0 ± 1.0",
        "distilled − plain": "+6.0 ± 1.0",
    }
    assert row(table, "AP75")["plain"] == "36.0 ± 1.0"
    assert set(row(table, "AP small").values()) == {"–"}
    assert [name for name, _ in table.rows] == ["AP", "AP50", "AP75", "AP small", "AP medium", "AP large"]


def test_a_loss_is_shown_as_one(benchmark: Build) -> None:
    gain = dict(result_table(benchmark([0.46, 0.46], [0.452, 0.458])).rows)["AP"][-1]
    assert gain == Cell("−0.5 ± 0.4", "bad")
    same = dict(result_table(benchmark([0.46], [0.46])).rows)["AP"][-1]
    assert same == Cell("+0.0", "")


def test_gains_are_over_the_plain_and_every_other_arm(benchmark: Build) -> None:
    table = result_table(benchmark([0.46], [0.51], other=[0.49]))
    assert table.columns[5:] == ("distilled − plain", "distilled − built-in")
    assert row(table, "AP")["distilled − built-in"] == "+2.0"


def test_seeds_are_paired_by_number_not_by_place(benchmark: Build) -> None:
    data = benchmark([0.40, 0.50], [0.45, 0.55])
    turned = data.arms[-1].model_copy(update={"runs": data.arms[-1].runs[::-1]})
    shuffled = data.model_copy(update={"arms": (*data.arms[:-1], turned)})
    assert row(result_table(shuffled), "AP")["distilled − plain"] == "+5.0 ± 0.0"


def test_costs_have_units_and_gaps(benchmark: Build) -> None:
    table = cost_table(benchmark([0.4, 0.4], [0.5, 0.5])).without_empty_columns()
    assert table.columns == ("", "teacher", "plain", "distilled")
    assert row(table, "Parameters (million)")["distilled"] == "3.01"
    assert row(table, "File size (MB)") == {"teacher": "–", "plain": "–", "distilled": "6.2"}
    assert row(table, "ONNX latency (ms), median (p90)")["distilled"] == "12.3 (14.0)"
    assert row(table, "Training time (min)")["plain"] == "2.0"  # (120 s + 121 s) / 2
    assert table.caption.endswith("latency on 2 CPU threads, 50 runs.")


def test_classes_carry_their_number_of_boxes(benchmark: Build) -> None:
    table = class_table(benchmark([0.46], [0.51]))
    assert [name for name, _ in table.rows] == ["RBC (100)", "WBC (101)", "Platelets (102)"]
    assert row(table, "WBC (101)")["plain"] == "47.0"


def test_of_many_classes_those_that_changed_most_are_kept_in_order(benchmark: Build) -> None:
    names = tuple(f"class{index:02d}" for index in range(30))
    data = benchmark([0.46], [0.51], classes=names)
    distilled = data.arms[-1]
    metrics = distilled.runs[0].metrics
    changed = {
        **metrics.per_class,
        "class07": metrics.per_class["class07"].model_copy(update={"ap": 0.0}),
        "class29": metrics.per_class["class29"].model_copy(update={"ap": 1.0}),
    }
    run = distilled.runs[0].model_copy(update={"metrics": metrics.model_copy(update={"per_class": changed})})
    arms = (*data.arms[:-1], distilled.model_copy(update={"runs": (run,)}))
    assert classes_to_show(data.model_copy(update={"arms": arms}), 2) == ("class07", "class29")


def test_every_run_is_listed(benchmark: Build) -> None:
    table = seed_table(benchmark([0.455, 0.46], [0.51, 0.52]))
    assert [name for name, _ in table.rows] == [
        "teacher, seed 0",
        "plain, seed 0",
        "plain, seed 1",
        "distilled, seed 0",
        "distilled, seed 1",
    ]
    assert row(table, "plain, seed 0")["directory"] == "plain/seed0"


def test_markdown_is_a_table_that_class_names_cannot_break() -> None:
    table = Table("t", "c", ("", "a|b"), (("x|y", (Cell("1.0"),)),))
    assert table.to_markdown() == "|  | a\\|b |\n|:---|---:|\n| x\\|y | 1.0 |"


def test_one_run_has_all_twelve_numbers(metrics: Metrics) -> None:
    table = metrics_table(metrics)
    assert len(table.rows) == 12
    assert row(table, "AR, 100 boxes") == {"points": "56.0"}
    assert row(table, "AR small") == {"points": "–"}


@pytest.mark.parametrize("most", [None, 3, 5])
def test_few_classes_are_all_shown(benchmark: Build, most: int | None) -> None:
    assert classes_to_show(benchmark([0.4], [0.5]), most) == ("RBC", "WBC", "Platelets")
