"""Config files: what is right is typed, what is wrong is said at once."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from kd_vision.config.load import load_config, recipe_names
from kd_vision.config.schema import changed_keys
from kd_vision.core.errors import RequestError
from kd_vision.knowledge.config import StoreConfig

BASE = "data: d.yaml\nimage_size: 64\nstudent: {model: yolov8n}\n"


def write(folder: Path, text: str) -> Path:
    for name in ("d.yaml", "t.pt"):
        (folder / name).touch()
    path = folder / "c.yaml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file_and_overrides_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, BASE + "teacher: {weights: sub/t.pt}\ndistill: imitation\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "t.pt").touch()
    config = load_config(path)
    assert config.data == tmp_path / "d.yaml"
    assert config.teachers[0].weights == tmp_path / "sub" / "t.pt"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "u.pt").touch()
    monkeypatch.chdir(elsewhere)
    assert load_config(path, ["teacher.weights=u.pt"]).teachers[0].weights == elsewhere / "u.pt"


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "data: d.yaml\nimage_sise: 64\nstudent: {family: ultralytic}\n"
        "teacher: {weights: none.pt, model: yolo8n}\ndistill: [{loss: class_bc}, {loss: box_iou, wait: 1}]\n"
        "train: {epoch: 3, batch_size: none}\n",
    )
    with pytest.raises(RequestError) as caught:
        load_config(path)
    assert list(caught.value.problems) == [
        f"{path}: teacher.weights: {tmp_path}/none.pt does not exist; give a model's file",
        f"{path}: train.batch_size: input should be a valid integer, unable to parse string as an integer; "
        "given 'none'",
        f"{path}: train.epoch: unknown key; did you mean 'epochs'?",
        f"{path}: image_sise: unknown key; did you mean 'image_size'?",
        f"{path}: student.family: unknown family 'ultralytic'; did you mean 'ultralytics'?",
        f"{path}: teacher.model: unknown model 'yolo8n'; did you mean 'yolov8n'?",
        f"{path}: distill.0.loss: loss 'class_bc' is unknown; did you mean 'class_bce'?",
    ]


def test_every_mistake_in_the_settings_of_losses_is_named_at_once_when_the_rest_is_right(tmp_path: Path) -> None:
    """Their settings stand beside the losses, which need torch: it is loaded for a config without other mistakes."""
    terms = "[{loss: box_iou, wait: 1}, {loss: class_bce, weight: -1}, {loss: class_bce, name: keys}]"
    path = write(tmp_path, BASE + f"teacher: {{weights: t.pt}}\ndistill: {terms}\n")
    with pytest.raises(RequestError) as caught:
        load_config(path)
    first, second, third = caught.value.problems
    assert first == f"{path}: distill.0.wait: unknown key; did you mean 'weight'?"
    assert second.startswith(f"{path}: distill.1: weight must be more than 0")
    assert third == f"{path}: distill.2.name: 'keys' is taken; give another"


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, BASE + "train: {lr: 1e-3, weight_decay: 5e-4}\n"))
    assert config.train.lr == 0.001
    assert config.train.weight_decay == 0.0005


def test_a_key_given_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, BASE + "image_size: 96\n")
    with pytest.raises(RequestError, match=r"c\.yaml:4: key 'image_size' is given twice"):
        load_config(path)


def test_overrides_reach_into_lists(tmp_path: Path) -> None:
    path = write(tmp_path, BASE + "teacher: {weights: t.pt}\ndistill: [{loss: box_iou}]\n")
    config = load_config(path, ["distill.0.weight=auto", "train.epochs=7"])
    assert config.terms[0].config.weight == "auto"
    assert config.train.epochs == 7
    with pytest.raises(RequestError, match="'3' is no position in a list of 1"):
        load_config(path, ["distill.3.weight=1"])
    with pytest.raises(RequestError, match="--set epochs: expected key"):
        load_config(path, ["epochs"])


def test_distill_without_teacher_and_teacher_without_losses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="distill: needs a teacher"):
        load_config(write(tmp_path, BASE + "distill: imitation\n"))
    with pytest.raises(RequestError, match="expected the name of a recipe or a list of at least one loss"):
        load_config(write(tmp_path, BASE + "teacher: {weights: t.pt}\ndistill: []\n"))


def test_two_terms_of_one_loss_need_names(tmp_path: Path) -> None:
    text = BASE + "teacher: {weights: t.pt}\ndistill: [{loss: box_iou}, {loss: box_iou%s}]\n"
    with pytest.raises(RequestError, match="a second term named 'box_iou'"):
        load_config(write(tmp_path, text % ""))
    config = load_config(write(tmp_path, text % ", name: coarse, levels: [P5]"))
    assert [term.name for term in config.terms] == ["box_iou", "coarse"]


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_loads_and_a_resolved_config_reads_back_the_same(tmp_path: Path, recipe: str) -> None:
    config = load_config(write(tmp_path, BASE + f"teacher: {{weights: t.pt}}\ndistill: {recipe}\n"))
    assert config.terms
    again = tmp_path / "resolved.yaml"
    again.write_text(yaml.safe_dump(config.to_mapping()))
    assert load_config(again).to_mapping() == config.to_mapping()


def test_several_teachers_have_names_and_a_term_without_one_learns_from_all(tmp_path: Path) -> None:
    text = BASE + "teacher: [{weights: t.pt, name: weak}, {weights: t.pt}]\ndistill:\n"
    text += "  - {loss: box_iou, weight: 3}\n"
    text += "  - {loss: class_bce, teacher: weak, schedule: {kind: window, stop: 0.5}}\n"
    config = load_config(write(tmp_path, text))
    assert [teacher.name for teacher in config.teachers] == ["weak", "teacher2"]
    assert [(term.name, term.teacher, term.config.weight) for term in config.terms] == [
        ("box_iou_weak", "weak", 1.5),
        ("box_iou_teacher2", "teacher2", 1.5),
        ("class_bce", "weak", 0.5),
    ]
    with pytest.raises(RequestError, match=r"distill\.0\.teacher: there is no teacher 'week'; did you mean 'weak'\?"):
        load_config(write(tmp_path, BASE + "teacher: [{weights: t.pt, name: weak}]\n"
                                           "distill: [{loss: box_iou, teacher: week}]\n"))  # fmt: skip


def test_stored_knowledge_teaches_boxes_and_a_live_teacher_beside_it_the_rest(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    alone = load_config(write(tmp_path, BASE + "knowledge: store\n"))
    assert alone.recipe == "boxes"
    (store,) = alone.teachers
    assert store.config == StoreConfig(store=tmp_path / "store", same_teacher=True)
    assert (store.name, store.entry.offline, store.is_online) == ("knowledge", True, False)
    assert [term.teacher for term in alone.terms] == ["knowledge"]
    text = (
        BASE + "knowledge: {store: store}\nteacher: {weights: t.pt}\ndistill: [{loss: soft_boxes}, {loss: box_iou}]\n"
    )
    both = load_config(write(tmp_path, text))
    assert [term.teacher for term in both.terms] == ["knowledge", "teacher"]


@pytest.mark.parametrize(
    ("families", "recipe"),
    [("ultralytics", "imitation"), ("torchvision", "boxes")],
)
def test_the_default_recipe_is_one_that_the_pair_can(tmp_path: Path, families: str, recipe: str) -> None:
    config = load_config(write(tmp_path, BASE + f"teacher: {{family: {families}, weights: t.pt}}\n"))
    assert config.recipe == recipe


@pytest.mark.parametrize(("size", "recipe"), [(640, "imitation"), (1280, "teacher_sees_more")])
def test_a_teacher_that_sees_more_has_a_recipe_without_bins(tmp_path: Path, size: int, recipe: str) -> None:
    text = BASE + f"teacher: {{weights: t.pt, image_size: {size}}}\n"
    config = load_config(write(tmp_path, text.replace("image_size: 64\n", "")), ["image_size=640"])
    assert config.recipe == recipe
    assert ("box_ld" in [term.loss for term in config.terms]) == (recipe == "imitation")


def test_missing_file_and_unset_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=r"none\.yaml: cannot be read \(No such file or directory\)"):
        load_config(tmp_path / "none.yaml")
    monkeypatch.delenv("KDV_NOWHERE", raising=False)
    with pytest.raises(RequestError, match="the variable KDV_NOWHERE is not set"):
        load_config(write(tmp_path, BASE.replace("d.yaml", "${KDV_NOWHERE}/d.yaml")))


def test_overrides_reach_into_losses_that_are_only_named(tmp_path: Path) -> None:
    path = write(tmp_path, BASE + "teacher: {weights: t.pt}\ndistill: [class_bce, box_iou]\n")
    assert [term.config.weight for term in load_config(str(path), ["distill.1.weight=3"]).terms] == [0.5, 3.0]
    with pytest.raises(RequestError, match=r"--set teacher\.tta\.scales\.0\.more: .*scales\.0 is 1\.0, which has no"):
        load_config(path, ["teacher.tta={scales: [1.0]}", "teacher.tta.scales.0.more=1"])


def test_patience_needs_something_to_wait_for(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="patience waits for validation; set validate_every to 1 or more"):
        load_config(write(tmp_path, BASE + "train: {patience: 5, validate_every: 0, keep: last}\n"))


def test_what_predicted_before_training_takes_no_view(tmp_path: Path) -> None:
    labels = load_config(write(tmp_path, BASE + "teacher: {family: labels}\n"))
    assert (labels.recipe, [term.teacher for term in labels.terms]) == ("boxes", ["teacher"])
    with pytest.raises(RequestError) as caught:
        load_config(write(tmp_path, BASE + "teacher: {family: labels, name: me, image_size: 640, tta: {flip: true}}\n"))
    where = tmp_path / "c.yaml"
    assert list(caught.value.problems) == [
        f"{where}: teacher.image_size: has no meaning for predictions made before training; leave it out",
        f"{where}: teacher.tta: has no meaning for predictions made before training; leave it out",
    ]


def test_a_data_descriptor_in_the_place_of_a_config_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "format: coco\nroot: .\nsplits: {train: {images: images}}\n")
    with pytest.raises(RequestError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}: is a data descriptor; give a config, which names it: 'data: {path.name}'"


STORES = """
teacher: [{family: store, store: one, name: first}, {family: store, store: two, labels: {x: drop}}]
"""


def test_a_store_is_a_teacher_like_any_other_and_there_may_be_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(write(tmp_path, BASE + STORES + "distill: [{loss: soft_boxes, weight: 3}]\n"))
    assert [teacher.config for teacher in config.teachers] == [
        StoreConfig(store=tmp_path / "one"), StoreConfig(store=tmp_path / "two"),
    ]  # fmt: skip
    assert [(term.name, term.teacher, term.config.weight) for term in config.terms] == [
        ("soft_boxes_first", "first", 1.5), ("soft_boxes_teacher2", "teacher2", 1.5),
    ]  # fmt: skip
    assert config.teachers[1].options.labels == {"x": "drop"}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    changed = load_config(tmp_path / "c.yaml", ["teacher.1.store=three"])
    assert changed.teachers[1].config == StoreConfig(store=elsewhere / "three")


def test_the_short_form_of_a_store_is_a_folder_or_its_settings(tmp_path: Path) -> None:
    short, long = "knowledge: s\n", "knowledge: {store: s, verify: size, labels: {1: drop}}\n"
    folder = load_config(write(tmp_path, BASE + short)).teachers[0]
    settings = load_config(write(tmp_path, BASE + long)).teachers[0]
    assert settings.config == StoreConfig(store=tmp_path / "s", verify="size", same_teacher=True)
    assert settings.options.labels == {"1": "drop"}
    assert folder.name == settings.name == "knowledge"
    reached = load_config(write(tmp_path, BASE + short), ["knowledge.verify=size"]).teachers[0]
    assert reached.config == settings.config
    with pytest.raises(RequestError) as caught:
        load_config(write(tmp_path, BASE + "knowledge: {stor: s, tiles: {}}\n"))
    where = tmp_path / "c.yaml"
    assert list(caught.value.problems) == [
        f"{where}: knowledge.stor: unknown key; did you mean 'store'?",
        f"{where}: knowledge.store: is missing",
    ]
    with pytest.raises(RequestError) as caught:
        load_config(write(tmp_path, BASE + "knowledge: 3\n"))
    assert f"{where}: knowledge: expected a folder that `kd-vision label` wrote, or {{store: FOLDER}}" in str(
        caught.value
    )


@pytest.mark.parametrize(
    "text",
    [
        "knowledge: s\n",
        "knowledge: {store: s, verify: size}\nteacher: {weights: t.pt}\n",
        STORES,
        "teacher: {family: labels}\n",
        "teacher: {weights: t.pt, image_size: 96, postprocess: {score_threshold: 0.2}, labels: {a: b}}\n",
    ],
)
def test_a_resolved_config_is_read_back_as_the_same_run(tmp_path: Path, text: str) -> None:
    config = load_config(write(tmp_path, BASE + text))
    again = tmp_path / "resolved.yaml"
    again.write_text(yaml.safe_dump(config.to_mapping()))
    back = load_config(again)
    named = [replace(one, options=one.options.model_copy(update={"name": one.name})) for one in config.teachers]
    assert back.teachers == tuple(named)
    assert back.terms == config.terms
    assert changed_keys(config, back) == []


def test_the_name_that_every_offline_teacher_had_is_still_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "teacher: {family: labels}\ndistill: [{loss: soft_boxes, teacher: knowledge}]\n"
    config = load_config(write(tmp_path, BASE + text))
    assert [term.teacher for term in config.terms] == ["teacher"]
    assert "the teacher 'knowledge' is called 'teacher' today" in caplog.text
    with pytest.raises(
        RequestError, match=r"distill\.0\.teacher: there is no teacher 'knowledge'; possible: first, teacher2"
    ):
        load_config(write(tmp_path, BASE + STORES + "distill: [{loss: soft_boxes, teacher: knowledge}]\n"))


def test_two_teachers_cannot_have_one_name(tmp_path: Path) -> None:
    for text in ("teacher: [{weights: t.pt, name: a}, {family: labels, name: a}]\n",
                 "teacher: {weights: t.pt, name: knowledge}\nknowledge: s\n"):  # fmt: skip
        with pytest.raises(RequestError, match=r"name: '\w+' is taken or not a plain name; use letters, digits and _"):
            load_config(write(tmp_path, BASE + text))


def modules_of(code: str) -> list[str]:
    """Which heavy packages a program loads; it prints the error that it expects."""
    program = (
        "import sys\nfrom kd_vision.config.load import load_config\nfrom kd_vision.core.errors import RequestError\n"
        f"{code}\nprint([name for name in ('torch', 'torchvision', 'ultralytics', 'albumentations', 'cv2') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("imag_size: 64\n", "imag_size: unknown key; did you mean 'image_size'?"),
        ("teacher: {weights: t.pt}\ndistill: [{loss: class_bc}]\n", "loss 'class_bc' is unknown"),
        ("teacher: {weights: t.pt}\ndistill: [{loss: class_bce, teacher: nobody}]\n", "there is no teacher 'nobody'"),
        ("teacher: {family: onx}\n", "unknown family 'onx'; did you mean 'onnx'?"),
        ("teacher: {weights: gone.pt}\n", "gone.pt does not exist; give a model's file"),
        ("train: {epochs: none}\n", "train.epochs: input should be a valid integer"),
        ("teacher: {weights: t.pt}\ndistill: imitatoin\n", "unknown recipe 'imitatoin'; did you mean 'imitation'?"),
    ],
)
def test_a_mistake_is_told_before_anything_heavy_is_loaded(tmp_path: Path, text: str, mistake: str) -> None:
    path = write(tmp_path, BASE + text)
    code = f"try:\n    load_config({str(path)!r})\nexcept RequestError as error:\n    print(error)"
    said, loaded = modules_of(code)
    assert mistake in said
    assert loaded == "[]"


def test_a_config_without_losses_is_read_without_torch(tmp_path: Path) -> None:
    path = write(tmp_path, BASE)
    assert modules_of(f"load_config({str(path)!r})") == ["[]"]


def test_the_settings_of_losses_load_torch_and_no_model(tmp_path: Path) -> None:
    path = write(tmp_path, BASE + "teacher: {weights: t.pt}\ndistill: [{loss: class_bce}]\n")
    (loaded,) = modules_of(f"load_config({str(path)!r})")
    assert "ultralytics" not in loaded
    assert "albumentations" not in loaded
