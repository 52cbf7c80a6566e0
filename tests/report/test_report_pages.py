"""The pages stand alone, hold what they should, and open in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd_vision.core.errors import RequestError
from kd_vision.report.benchmark_data import BenchmarkData, write_benchmark
from kd_vision.report.write import write_benchmark_report, write_run_report

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Structure(HTMLParser):
    """Collects ids and sources, and complains about tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def _note(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.sources.append(value or "")
            self.references += re.findall(r"url\(([^)]*)\)", value or "")


def structure(path: Path) -> Structure:
    parsed = Structure()
    parsed.feed(path.read_text(encoding="utf-8"))
    assert parsed.open == []
    return parsed


def check_stands_alone(path: Path) -> None:
    parsed = structure(path)
    assert all(source.startswith(("#", "data:")) for source in parsed.sources)
    assert all(reference.startswith("#") for reference in parsed.references)
    assert len(parsed.ids) == len(set(parsed.ids)), "an id is on the page twice"
    targets = [source for source in parsed.sources if source.startswith("#")] + parsed.references
    assert {target[1:] for target in targets} <= set(parsed.ids)
    text = path.read_text(encoding="utf-8")
    assert "@import" not in text
    assert "<script" not in text


def test_benchmark_page_stands_alone_and_says_it_all(benchmark_directory: Path) -> None:
    markdown, page = write_benchmark_report(benchmark_directory)
    assert (markdown.name, page.name) == ("report.md", "report.html")
    check_stands_alone(page)
    text = page.read_text(encoding="utf-8")
    for words in (
        "The distilled student is better: +5.2 AP points (3 seeds, 95 % interval over images and seeds +2.1 to +8.3); "
        "every seed improved.",
        "The control had no teacher: this part is the teacher&#39;s own.",
        "long enough: 1.5 x the steps change the plain twin by +0.3 points",
        "Differences and their intervals",
        "What the errors cost",
        "AP small (12)",
        "31 / 12 / 29",
        "Validation AP during training",
        "Seed by seed",
        "AP by object size",
        "AP by class",
        "Distillation terms",
        "Gradient share of each term",
        "built-in − plain",
        "BloodImage_4.jpg: 2 fewer mistakes after distillation",
        "<b>plain</b>: 2 TP, 1 FP, 2 FN",
        "runs of seed 0",
        "kd-vision benchmark configs/bccd.yaml --seeds 0 1 2",
    ):
        assert words in text, words
    assert text.count("data:image/jpeg;base64,") == 2 * 4
    assert not re.search(r"\bnan\b|None", re.sub(r'"data:[^"]*"', "", text.split("</style>")[1]))


def test_markdown_has_the_same_tables(benchmark_directory: Path) -> None:
    markdown, _ = write_benchmark_report(benchmark_directory)
    text = markdown.read_text(encoding="utf-8")
    assert "**The distilled student is better: +5.2 AP points (3 seeds, 95 % interval over images and seeds " in text
    assert "| plain | 46.0 ± 0.5 | 66.0 ± 0.5 | 36.0 ± 0.5 |" in text
    assert "| distilled − plain | better | +5.2<br>+2.1 to +8.3 | +5.2<br>+2.1 to +8.3 |" in text
    assert "| Parameters (million) | 11.14 | 3.01 | 3.01 | 3.01 | 3.01 |" in text
    assert "- [BloodImage_9.jpg](examples/9.jpg): 2 fewer mistakes after distillation" in text


def test_a_report_made_again_is_the_same_to_the_byte(benchmark_directory: Path) -> None:
    first = [path.read_bytes() for path in write_benchmark_report(benchmark_directory)]
    assert [path.read_bytes() for path in write_benchmark_report(benchmark_directory)] == first


def test_run_directories_that_are_gone_only_cost_their_plots(benchmark_directory: Path) -> None:
    shutil.rmtree(benchmark_directory / "distilled")
    text = write_benchmark_report(benchmark_directory)[1].read_text(encoding="utf-8")
    assert "Gradient share" not in text
    assert "Validation AP during training" in text


def test_names_from_the_data_cannot_break_the_page(benchmark: Callable[..., BenchmarkData], tmp_path: Path) -> None:
    classes = ("<script>alert(1)</script>", "$x_$ & co")
    write_benchmark(tmp_path, benchmark([0.4], [0.5], classes=classes, title="<b>a</b>"))
    page = write_benchmark_report(tmp_path)[1]
    check_stands_alone(page)
    text = page.read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; (100)" in text
    assert "$x_$ &amp; co" in text
    assert "<title>&lt;b&gt;a&lt;/b&gt;</title>" in text


def test_many_classes_are_folded_and_the_bars_say_what_they_leave_out(
    benchmark: Callable[..., BenchmarkData], tmp_path: Path
) -> None:
    classes = tuple(f"class{index}" for index in range(80))
    write_benchmark(tmp_path, benchmark([0.4, 0.41], [0.5, 0.5], classes=classes))
    text = write_benchmark_report(tmp_path)[1].read_text(encoding="utf-8")
    assert "<summary>80 classes</summary>" in text
    assert "Shown are the 20 classes that changed most; 60 more are in the table." in text


def test_a_missing_example_image_is_named_and_nothing_is_written(benchmark_directory: Path) -> None:
    (benchmark_directory / "examples" / "9.jpg").unlink()
    with pytest.raises(RequestError, match=r"examples/9\.jpg: image is missing"):
        write_benchmark_report(benchmark_directory)
    assert not (benchmark_directory / "report.md").exists()
    assert not (benchmark_directory / "report.html").exists()


def test_run_page(run_directory: Path) -> None:
    markdown, page = write_run_report(run_directory)
    check_stands_alone(page)
    text = page.read_text(encoding="utf-8")
    headline = "AP 46.0, AP50 66.0 on 72 images of bccd test; best validation AP 46.0 at step 325."
    for words in (
        headline,
        "Training loss",
        "Distillation terms",
        "versions.torch",
        "{model: &lt;yolov8n&gt;}",
    ):
        assert words in text, words
    text = markdown.read_text(encoding="utf-8")
    assert f"**{headline}**" in text
    assert "- taught by: ultralytics big/student.pt\n- teacher before training: AP 61.0 on 'val'\n" in text
    assert "| AR, 100 boxes | 56.0 |" in markdown.read_text(encoding="utf-8")


def test_terms_of_very_different_size_are_drawn_logarithmic_with_plain_numbers(tmp_path: Path) -> None:
    lines = [
        {"step": step, "split": "train", "loss/kd/large": 100.0 / step, "loss/kd/small": 0.01 / step}
        for step in (1, 2, 3)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_run_report(tmp_path)[1]
    check_stands_alone(page)
    text = page.read_text(encoding="utf-8")
    assert {"0.01", "1", "100"} <= set(re.findall(r"<text[^>]*>([^<]*)</text>", text))
    assert "mathdefault" not in text


def test_a_run_that_was_killed_still_has_a_page(run_directory: Path) -> None:
    for name in ("metrics.json", "environment.json", "config.yaml"):
        (run_directory / name).unlink()
    log = run_directory / "metrics.jsonl"
    log.write_text(log.read_text()[:-20])
    page = write_run_report(run_directory)[1]
    check_stands_alone(page)
    assert "The run is not finished; best validation AP 41.1 at step 260." in page.read_text(encoding="utf-8")


def test_a_run_without_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"metrics\.jsonl: cannot be read \(No such file or directory\)"):
        write_run_report(tmp_path)
    with pytest.raises(RequestError, match="nowhere: is no directory; give the run directory"):
        write_run_report(tmp_path / "nowhere")


def test_wrong_final_numbers_are_named(run_directory: Path) -> None:
    content = json.loads((run_directory / "metrics.json").read_text())
    (run_directory / "metrics.json").write_text(json.dumps({**content, "AP": 46}))
    with pytest.raises(RequestError, match=r"metrics\.json: AP: input should be less than or equal to 1"):
        write_run_report(run_directory)


def test_the_room_needs_no_torch_and_loads_drawing_libraries_only_to_draw() -> None:
    code = (
        "import importlib, pkgutil, sys, kd_vision.report as room\n"
        "for module in pkgutil.iter_modules(room.__path__, 'kd_vision.report.'): importlib.import_module(module.name)\n"
        "print(sorted({'torch', 'matplotlib', 'supervision', 'scipy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout == "[]\n"


def test_reports_are_written_without_torch_and_without_a_word(benchmark_directory: Path, run_directory: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from kd_vision.report.write import *\n"
        f"write_benchmark_report(Path({str(benchmark_directory)!r})); write_run_report(Path({str(run_directory)!r}))\n"
        "sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.fixture
def browser() -> str:
    """A headless Chromium."""
    candidates = [os.environ.get("CHROME", ""), "chromium", "chromium-browser", "google-chrome"]
    found = next((path for path in map(shutil.which, filter(None, candidates)) if path), None)
    if found is None:
        pytest.skip("no Chromium on the path; install one or set CHROME")
    return found


@pytest.mark.parametrize("width", [1280, 390])
def test_opens_in_a_browser(benchmark_directory: Path, tmp_path: Path, browser: str, width: int) -> None:
    page = write_benchmark_report(benchmark_directory)[1]
    picture = tmp_path / "page.png"
    common = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},2400",
    ]
    shot = subprocess.run(
        [*common, f"--screenshot={picture}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in shot.stderr, "the browser complains about the page"
    image = np.asarray(Image.open(picture).convert("RGB"))
    assert image.shape == (2400, width, 3)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 100, "the page is blank"
    # Nothing is cut off at the right: the outermost columns show the paper alone.
    assert (image[:, -4:] == np.array([246, 247, 248])).all()
    dump = subprocess.run(
        [*common, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "The distilled student is better: +5.2 AP points" in dump.stdout
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', dump.stdout)
