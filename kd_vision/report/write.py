"""Writes `report.md` and `report.html` of a directory from the files in it; it can be done again at any time."""

from __future__ import annotations

from pathlib import Path

from kd_vision.core.files import write_text
from kd_vision.report.benchmark_data import read_benchmark
from kd_vision.report.html import benchmark_html, run_html
from kd_vision.report.markdown import benchmark_markdown, run_markdown
from kd_vision.report.run_data import read_run


def write_benchmark_report(directory: Path) -> tuple[Path, Path]:
    """Write the report of a benchmark directory and return the paths (markdown, HTML).

    Raises:
        RequestError: `benchmark.json`, a log or an example image is missing or wrong; nothing is
            written then.
    """
    data = read_benchmark(directory)
    return _write(directory, benchmark_markdown(data), benchmark_html(data, directory))


def write_run_report(run_dir: Path) -> tuple[Path, Path]:
    """Write the report of a run directory and return the paths (markdown, HTML).

    Raises:
        RequestError: `metrics.jsonl` is missing, or a file of the run is wrong; nothing is written
            then.
    """
    run = read_run(run_dir)
    return _write(run_dir, run_markdown(run), run_html(run))


def _write(directory: Path, markdown: str, html: str) -> tuple[Path, Path]:
    paths = directory / "report.md", directory / "report.html"
    write_text(paths[0], markdown)
    write_text(paths[1], html)
    return paths
