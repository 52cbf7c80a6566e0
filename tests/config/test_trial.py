"""Trial files: arms as overrides of a config, and the text of every refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kd_vision.config.load import load_config
from kd_vision.config.trial import Trial, is_trial, load_trial
from kd_vision.core.errors import RequestError

TRIALS = Path(__file__).parents[2] / "configs" / "trials"
BOTH = "plain: {}, distilled: {}"


@pytest.fixture
def write_trial(tmp_path: Path, write_config: Callable[..., Path]) -> Callable[[str], Path]:
    """Return a function that writes a trial of the tiny config from the text of its arms."""
    write_config()

    def write(arms: str, head: str = "config: ../config.yaml") -> Path:
        folder = tmp_path / "trials"
        folder.mkdir(exist_ok=True)
        path = folder / "trial.yaml"
        path.write_text(f"{head}\narms: {{{arms}}}\n")
        return path

    return write


def refused(path: Path, **options: object) -> list[str]:
    """Return the lines of the refusal, without the file's name."""
    with pytest.raises(RequestError) as caught:
        load_trial(path, **options)  # type: ignore[arg-type]
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def test_arms_are_overrides_of_the_config(write_trial: Callable[..., Path], teacher_file: Path) -> None:
    path = write_trial(
        f"plain: , distilled: {{}}, slow: {{set: [train.lr=1e-4, 'distill=[{{loss: class_qfl}}]']}}, "
        f"far: {{base: plain, role: plain, description: from a file, set: {{student: {{weights: {teacher_file}}}}}}}",
        "config: ../config.yaml\nseeds: [3, 4]",
    )
    trial = load_trial(path, ["train.epochs=7"])
    assert trial.seeds == (3, 4)
    assert [(arm.name, arm.base, arm.role) for arm in trial.arms] == [
        ("plain", "plain", "plain"), ("distilled", "distilled", "distilled"), ("slow", "distilled", "other"),
        ("far", "plain", "plain"),
    ]  # fmt: skip
    configs = {arm.name: arm.config for arm in trial.arms}
    assert configs["slow"].train.lr == 1e-4
    assert [term.loss for term in configs["slow"].terms] == ["class_qfl"]
    assert {config.train.epochs for config in configs.values()} == {7}
    assert configs["far"].student.weights == teacher_file  # type: ignore[attr-defined]
    assert [arm.description for arm in trial.arms[2:]] == [
        'train.lr=0.0001, distill=[{"loss": "class_qfl"}]', "from a file",
    ]  # fmt: skip


def test_paths_of_arms_are_relative_to_the_trial_file(write_trial: Callable[..., Path], teacher_file: Path) -> None:
    path = write_trial(f"{BOTH}, far: {{set: [student.weights=start.pt]}}")
    (path.parent / "start.pt").write_bytes(teacher_file.read_bytes())
    trial = load_trial(path)
    assert trial.arms[2].config.student.weights == path.parent / "start.pt"  # type: ignore[attr-defined]


def test_another_config_takes_the_place_of_the_files(write_trial: Callable[..., Path], tmp_path: Path) -> None:
    path = write_trial(BOTH, "config: nowhere.yaml")
    (tmp_path / "other.yaml").write_text((tmp_path / "config.yaml").read_text())
    assert load_trial(path, config=tmp_path / "other.yaml").config.source == tmp_path / "other.yaml"
    assert refused(path) == [
        f"config: {path.parent / 'nowhere.yaml'} does not exist; give a config, relative to the trial file"
    ]


def test_a_trial_is_told_from_a_config(write_trial: Callable[..., Path], tmp_path: Path) -> None:
    assert is_trial(write_trial(BOTH))
    assert not is_trial(tmp_path / "config.yaml")
    assert refused(tmp_path / "config.yaml") == ["is a config, not a trial file; give it without --trial"]


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ("plain: {}", "arms: there is no arm 'distilled', one of the two that the report compares; add it, e.g. arms:"),
        (f"{BOTH}, longer: {{}}", "arms.longer: is no name for a folder here; use letters, digits, _ and -"),
        (f"{BOTH}, a/b: {{}}", "arms.a/b: is no name for a folder here"),
        (f"{BOTH}, a: {{sett: [x=1]}}", "arms.a.sett: unknown key; did you mean 'set'?"),
        (
            f"{BOTH}, a: {{base: plian}}",
            "arms.a.base: input should be 'plain', 'control' or 'distilled'; given 'plian'",
        ),
        (
            "plain: {base: control}, distilled: {}",
            "arms.plain.base: is 'control', but the name says 'plain'; leave base",
        ),
        ("plain: {role: other}, distilled: {}", "arms.plain.role: is 'other', but the name says 'plain'; leave role"),
        (f"{BOTH}, a: {{set: [train.lr]}}", "arms.a.set: train.lr: expected key.path=value, e.g. train.epochs=2"),
        (f"{BOTH}, a: {{set: [train.epohcs=3]}}", "arms.a.set: train.epohcs: unknown key; did you mean 'epochs'?"),
        (f"{BOTH}, a: {{set: [distill.7.weight=3]}}", "arms.a.set: distill.7: '7' is no position in a list of 2"),
        (f"{BOTH}, a: {{set: [student.weights=no.pt]}}", "arms.a.set: student.weights: "),
        (
            f"{BOTH}, a: {{set: {{student: {{model: yolo8n}}}}}}",
            "arms.a.set: student.model: unknown model 'yolo8n'; did ",
        ),
        (
            f"{BOTH}, a: {{set: ['student.weights=${{KDV_NOWHERE}}/x.pt']}}",
            "arms.a.set: ${KDV_NOWHERE}/x.pt: the variable KDV_NOWHERE is not set",
        ),
        (
            f"{BOTH}, a: {{set: [image_size=96]}}",
            "arms.a.set: image_size: cannot differ, as all arms share the image size",
        ),
        (f"{BOTH}, a: {{set: {{train: {{seed: 1}}}}}}", "arms.a.set: train.seed: cannot differ, as seeds are given by"),
        (
            "distilled: {}, plain: {set: [teacher.weights=x.pt]}",
            "arms.plain.set: teacher.weights: has no effect, as an arm",
        ),
        (f"{BOTH}, a: {{set: []}}", "arms.a: is the same as arms.distilled; change its `set`, or leave it out"),
    ],
)
def test_a_mistake_is_told_with_its_place(write_trial: Callable[..., Path], arms: str, message: str) -> None:
    lines = refused(write_trial(arms))
    assert len(lines) == 1
    assert lines[0].startswith(message)


def test_mistakes_at_the_top_level_are_told(write_trial: Callable[..., Path]) -> None:
    assert refused(write_trial(BOTH, "config: ../config.yaml\nseeds: [0, 0]")) == [
        "seeds: give different seeds from 0 up, e.g. [0, 1, 2]; given [0, 0]"
    ]
    assert refused(write_trial(BOTH, "seed: [0]")) == ["config: is missing", "seed: unknown key; did you mean 'seeds'?"]


@pytest.mark.parametrize("path", sorted(TRIALS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_trials_of_the_repository_are_read(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trial = read_without_files(path, monkeypatch, tmp_path)
    assert trial.seeds == (0, 1, 2)
    assert f"kd-vision benchmark configs/trials/{path.name}" in path.read_text()


def test_the_ablation_leaves_each_term_of_the_recipe_out_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trial = read_without_files(TRIALS / "bccd_terms.yaml", monkeypatch, tmp_path)
    arms = {arm.name: arm.config.terms for arm in trial.arms}
    full = arms["distilled"]
    for index, name in enumerate(("no_class", "no_box_iou", "no_box_ld")):
        assert arms[name] == full[:index] + full[index + 1 :]
    assert {term.config.model_dump()["balance"] for term in arms["no_balance"]} == {0.0}


def read_without_files(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trial:
    """Read a trial whose data and weights are elsewhere."""
    monkeypatch.setenv("KDV_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("kd_vision.config.trial.load_config", lambda *given: load_config(*given, files_exist=False))
    return load_trial(path)
