"""What the report of a benchmark reads from the folders of its runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kd_vision.config.load import load_config
from kd_vision.core.errors import RequestError
from kd_vision.core.run_directory import RunDirectory
from kd_vision.evaluation.tide import ERROR_KINDS
from kd_vision.pipeline.assemble import assemble
from kd_vision.pipeline.benchmark import benchmark
from kd_vision.pipeline.data import RunData


def test_the_report_reads_matches_a_longer_run_and_roles_of_further_arms(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """One benchmark; then a longer plain run, a further arm with a role of its own, and a run without matches."""
    out, config = tmp_path / "bench", load_config(write_config(train="epochs: 1"))
    data = RunData(config.data)
    first = benchmark(config, [0], out, with_latency=False, control=False).data
    assert first.budget is None
    (difference,) = first.differences
    assert (difference.after, difference.before, difference.seeds) == ("distilled", "plain", 1)
    assert first.box_counts["all"] == sum((~image.crowd).sum() for image in data.final_split(config).images)
    assert set(first.arms[1].errors) == set(ERROR_KINDS)

    shutil.copytree(out / "plain", out / "longer" / "plain")
    longer = RunDirectory(out / "longer" / "plain" / "seed0")
    longer.fit.write_text(json.dumps(json.loads(longer.fit.read_text()) | {"steps": 3 * first.steps // 2}))
    shutil.copytree(out / "distilled", out / "boxes only")
    (out / "boxes only" / "arm.json").write_text(json.dumps({"role": "other", "description": "soft boxes alone"}))
    RunDirectory(out / "plain" / "seed0").matches.unlink()
    second = assemble(config, [0], out, data, with_latency=False).data
    assert second.budget is not None
    assert second.budget.ap == second.budget.longer_ap
    assert (second.budget.split, second.budget.longer_steps) == (config.evaluate.split, 3 * first.steps // 2)
    assert [(arm.name, arm.role) for arm in second.arms[3:]] == [("boxes only", "other")]
    assert second.arms[3].description == "soft boxes alone"
    assert [(one.after, one.before) for one in second.differences] == [("distilled", "plain"), ("boxes only", "plain")]
    assert second.differences[0].overall == difference.overall, "matches made again are the same"
    assert RunDirectory(out / "plain" / "seed0").matches.is_file()

    (out / "boxes only" / "arm.json").write_text(json.dumps({"role": "best", "description": ""}))
    with pytest.raises(RequestError, match=r"arm\.json: role: input should be 'teacher', 'plain'"):
        assemble(config, [0], out, data, with_latency=False)
