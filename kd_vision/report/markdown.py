"""The report as markdown, for a repository page or a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from kd_vision.report.benchmark_data import BenchmarkData
from kd_vision.report.run_data import RunData
from kd_vision.report.tables import (
    Table,
    class_table,
    cost_table,
    difference_table,
    error_table,
    metrics_class_table,
    metrics_table,
    result_table,
    seed_table,
)
from kd_vision.report.verdict import judge_benchmark


def benchmark_markdown(data: BenchmarkData) -> str:
    """Return the text of `report.md` of a benchmark."""
    verdict = judge_benchmark(data)
    lines = [f"# {data.title}", "", f"**{verdict.headline}**", ""]
    lines += [f"- {line}" for line in verdict.details]
    tables = [
        result_table(data),
        difference_table(data),
        class_table(data),
        error_table(data),
        cost_table(data).without_empty_rows(),
        seed_table(data),
    ]
    lines += _tables([table for table in tables if table is not None and table.rows])
    lines += ["", "## Arms", ""]
    lines += [f"- **{arm.name}** ({arm.model}): {arm.description}" for arm in data.arms]
    if data.examples:
        lines += ["", "## Where before and after differ most", ""]
        lines += [
            f"- [{example.file_name}]({example.image}): {describe_difference(example.difference)}"
            for example in data.examples
        ]
    lines += ["", "## How it was made", "", "```", data.command, "```", ""]
    lines += [f"- {name}: {value}" for name, value in benchmark_facts(data)]
    return "\n".join(lines) + "\n"


def run_markdown(run: RunData) -> str:
    """Return the text of `report.md` of one training run."""
    lines = [f"# {run.title}", "", f"**{run.headline}**"]
    if run.metrics is not None:
        lines += _tables([metrics_table(run.metrics), metrics_class_table(run.metrics)])
    lines += ["", "## How it was made", ""]
    lines += [f"- {name}: {value}" for name, value in run.environment]
    if run.config:
        lines += ["", "```yaml", run.config.rstrip(), "```"]
    return "\n".join(lines) + "\n"


def benchmark_facts(data: BenchmarkData) -> list[tuple[str, str]]:
    """Return names and values of the conditions of a benchmark."""
    facts = [
        ("created", data.created),
        ("data", f"{data.data.name} {data.data.split}, {data.data.n_images} images"),
        ("image size", f"{data.image_size} pixels"),
        ("batches of training", "not stated" if data.steps is None else str(data.steps)),
        ("seeds", ", ".join(map(str, data.seeds)) or "none"),
    ]
    facts += [(name, "none" if value is None else str(value)) for name, value in data.hardware.items()]
    return facts + list(data.versions.items())


def describe_difference(difference: float) -> str:
    """Return a difference in mistakes in words."""
    count = abs(round(difference))
    mistakes = "mistake" if count == 1 else "mistakes"
    change = "fewer" if difference > 0 else "more"
    if count == 0:
        return "as many mistakes after as before"
    return f"{count} {change} {mistakes} after distillation"


def _tables(tables: Sequence[Table]) -> list[str]:
    lines = []
    for table in tables:
        lines += ["", f"## {table.title}", "", table.to_markdown(), "", table.caption]
    return lines
