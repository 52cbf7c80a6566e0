"""Means, spreads, gains and costs as text, checked against hand-computed numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kd_vision.evaluation.metrics import Metrics
from kd_vision.report.benchmark_data import BenchmarkData, ErrorKindFacts
from kd_vision.report.tables import (
    Cell,
    Table,
    class_table,
    classes_to_show,
    cost_table,
    difference_table,
    error_table,
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
    # Paired differences 7, 5, 6: mean 6, half width 4.3027 / sqrt(3) = 2.48.
    data = benchmark([0.45, 0.46, 0.47], [0.52, 0.51, 0.53])
    table = result_table(data)
    assert [name for name, _ in table.rows] == ["teacher", "plain", "distilled"]
    assert [table.rows[index][1][0].text for index in range(3)] == ["61.4", "46.0 ± 1.0", "52.0 ± 1.0"]
    assert row(table, "plain")["AP75"] == "36.0 ± 1.0"
    assert row(table, "plain")["AP small"] == "–"
    assert table.columns == ("", "AP", "AP50", "AP75", "AP small", "AP medium", "AP large")
    assert row(difference_table(data), "distilled − plain") == {
        "AP is": "better", "AP": "+6.0\n+3.5 to +8.5", "AP50": "+6.0\n+3.5 to +8.5", "AP75": "+6.0\n+3.5 to +8.5",
        "AP small": "–", "AP medium": "+6.0\n+3.5 to +8.5", "AP large": "+6.0\n+3.5 to +8.5",
        "images won / lost / equal": "–",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("plain", "distilled", "cell"),
    [
        ([0.46, 0.46, 0.46], [0.43, 0.44, 0.42], Cell("−3.0\n−5.5 to −0.5", "bad")),
        ([0.46, 0.46, 0.46], [0.52, 0.51, 0.53], Cell("+6.0\n+3.5 to +8.5", "good")),
        ([0.46, 0.46], [0.452, 0.458], Cell("−0.5\n−4.3 to +3.3", "")),  # 12.706 x 0.3
        ([0.46], [0.464], Cell("+0.4", "")),
        ([0.46], [0.46], Cell("+0.0", "")),
    ],
)
def test_only_what_the_interval_shows_is_coloured(
    benchmark: Build, plain: list[float], distilled: list[float], cell: Cell
) -> None:
    assert difference_table(benchmark(plain, distilled)).rows[0][1][1] == cell


def test_one_seed_is_never_coloured(benchmark: Build, intervals: Callable[..., BenchmarkData]) -> None:
    data = intervals(benchmark([0.46], [0.51]), {("distilled", "plain"): (0.02, 0.08)})
    for table in (difference_table(data), class_table(data)):
        assert {cell.tone for _, cells in table.rows for cell in cells} == {""}
    assert row(difference_table(data), "distilled − plain")["AP"] == "+5.0\n+2.0 to +8.0"
    assert row(difference_table(data), "distilled − plain")["images won / lost / equal"] == "31 / 12 / 29"
    assert "95 % interval over images alone (1000 draws of the images)" in difference_table(data).caption


def test_every_student_is_compared_with_plain_and_control(benchmark: Build) -> None:
    table = difference_table(benchmark([0.46], [0.51], other=[0.49], control=[0.47]))
    assert [(name, cells[1].text) for name, cells in table.rows] == [
        ("distilled − plain", "+5.0"),
        ("distilled − control", "+4.0"),
        ("built-in − plain", "+3.0"),
        ("built-in − control", "+2.0"),
        ("control − plain", "+1.0"),
    ]


def test_seeds_are_paired_by_number_not_by_place(benchmark: Build) -> None:
    data = benchmark([0.40, 0.50], [0.45, 0.55])
    turned = data.arms[-1].model_copy(update={"runs": data.arms[-1].runs[::-1]})
    shuffled = data.model_copy(update={"arms": (*data.arms[:-1], turned)})
    assert row(difference_table(shuffled), "distilled − plain")["AP"] == "+5.0\n+5.0 to +5.0"


def test_numbers_of_few_boxes_are_dimmed_and_say_so(benchmark: Build, intervals: Callable[..., BenchmarkData]) -> None:
    data = benchmark([0.46] * 3, [0.51, 0.52, 0.53], box_counts={"all": 90, "small": 0, "medium": 29, "large": 61})
    data = intervals(data, {("distilled", "plain"): (0.02, 0.08)})
    for table in (result_table(data), difference_table(data)):
        medium = table.columns.index("AP medium (29)") - 1
        assert {cells[medium].tone for _, cells in table.rows} == {"noise"}
        assert table.rows[-1][1][table.columns.index("AP large (61)") - 1].tone in ("", "good")
        assert table.caption.endswith("Dimmed: fewer than 30 boxes, so mostly noise.")
    arm = data.arms[0]
    per_class = {**arm.runs[0].metrics.per_class}
    per_class["WBC"] = per_class["WBC"].model_copy(update={"boxes": 29})
    run = arm.runs[0].model_copy(update={"metrics": arm.runs[0].metrics.model_copy(update={"per_class": per_class})})
    table = class_table(data.model_copy(update={"arms": (arm.model_copy(update={"runs": (run,)}), *data.arms[1:])}))
    assert {cell.tone for cell in dict(table.rows)["WBC (29)"]} == {"noise"}
    assert dict(table.rows)["RBC (100)"][-1].tone == "good"
    assert "_+6.0_<br>_+2.0 to +8.0_" in table.to_markdown()
    assert table.caption.endswith("mostly noise.")


def test_errors_are_a_table_where_they_were_measured(benchmark: Build) -> None:
    data = benchmark([0.46], [0.51])
    assert error_table(data) is None
    errors = {"missed": ErrorKindFacts(count=12, cost=0.081), "both": ErrorKindFacts(count=3, cost=0.0)}
    arms = (*data.arms[:-1], data.arms[-1].model_copy(update={"errors": errors}))
    table = error_table(data.model_copy(update={"arms": arms, "examples_seed": 2}))
    assert table is not None
    assert row(table, "distilled") == {
        "classification": "–", "localisation": "–", "both": "0.0 (3)", "duplicate": "–", "background": "–",
        "missed": "8.1 (12)",
    }  # fmt: skip
    assert table.caption.endswith("Students: runs of seed 2.")


def test_costs_have_units_and_gaps(benchmark: Build) -> None:
    table = cost_table(benchmark([0.4, 0.4], [0.5, 0.5])).without_empty_rows()
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
