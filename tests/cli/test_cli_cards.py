"""`ls`, `info`, `new`, `check`, `add`, `rm`: the registry as files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml
from cli_world import Command, fails, files, whole
from conftest import tiny_llama
from model_hub import random_adapter
from peft import LoraConfig, TaskType, get_peft_model

from adapterhub.registry import Registry

pytest_plugins = ("cli_fixtures",)

NAMES = ["words/colour", "words/mood", "words/size"]


# ls, info


def test_ls_draws_the_tree_and_lists_it_as_json(cli: Command, world: Path) -> None:
    drawn = cli("ls", "-r", world)
    assert (drawn.code, drawn.err) == (0, "")
    assert "3 tasks" in drawn.out
    for name in ("words", "colour", "mood", "size", "classification", "v1"):
        assert name in drawn.out
    listed = json.loads(cli("ls", "-r", world, "--json").out)
    assert listed[1] == {"name": "words/mood", "head": "classification", "adapter": "v1"}
    assert [row["name"] for row in listed] == NAMES
    assert [row["name"] for row in json.loads(cli("ls", "words/mood", "-r", world, "--json").out)] == ["words/mood"]


def test_lines_are_not_cut_where_no_terminal_is(cli: Command, shop: Path) -> None:
    long = "words/" + "-".join(["long"] * 20)
    assert cli("new", long, "-d", "Long.", "-r", shop).code == 0
    assert f"{long.split('/')[1]} generation · no adapter · not measured" in cli("ls", "-r", shop).out


def test_ls_of_an_unknown_branch_and_of_no_folder(cli: Command, world: Path, tmp_path: Path) -> None:
    fails(cli("ls", "word", "-r", world), "No branch 'word'", "Did you mean `words`?")
    fails(cli("ls", "-r", tmp_path / "none"), "Found no folder", "adapterhub new")


def test_the_registry_is_the_option_then_the_environment_then_the_folder_here(
    cli: Command, world: Path, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("new", "a/b", "-d", "Here.").code == 0
    assert [row["name"] for row in json.loads(cli("ls", "--json").out)] == ["a/b"]
    monkeypatch.setenv("ADAPTERHUB_REGISTRY", str(world))
    assert len(json.loads(cli("ls", "--json").out)) == 3
    assert [row["name"] for row in json.loads(cli("ls", "--json", "-r", tmp_path / "registry").out)] == ["a/b"]


def test_info_tells_the_card_and_its_versions(cli: Command, world: Path) -> None:
    told = json.loads(cli("info", "words/mood", "-r", world, "--json").out)
    task = Registry(world)["words/mood"]
    assert told == {"name": "words/mood", **task.to_dict(), "versions": ["v1"]}
    shown = cli("info", "words/mood", "-r", world).out
    assert all(text in shown for text in ("words/mood", "classification", "v1", *task.examples))


def test_info_prints_brackets_as_they_are(cli: Command, shop: Path) -> None:
    cli("new", "a/b", "-d", "Say [bold]what[/] it [is].", "-r", shop)
    assert "Say [bold]what[/] it [is]." in cli("info", "a/b", "-r", shop).out


def test_info_of_an_unknown_task(cli: Command, world: Path) -> None:
    fails(cli("info", "words/moood", "-r", world), "No task 'words/moood'", "Did you mean `words/mood`?")
    fails(cli("info", "../words", "-r", world), "a task's name is")


# new


def test_new_writes_a_card_and_says_what_is_next(cli: Command, shop: Path) -> None:
    done = cli(
        "new", "words/kind", "-d", "Say the kind.", "-e", "a", "-e", "b", "--head", "classification",
        "-l", "x", "-l", "y", "--prompt", "{text}", "-r", shop,
    )  # fmt: skip
    assert done.code == 0
    assert done.out == f"{shop / 'words/kind/task.yaml'}\n"
    assert "adapterhub train words/kind" in done.err
    task = Registry(shop)["words/kind"]
    assert (task.examples, task.labels, task.head, task.base_model) == (
        ("a", "b"),
        ("x", "y"),
        "classification",
        "_base",
    )
    assert "base_model" not in yaml.safe_load((shop / "words/kind/task.yaml").read_text())
    whole(shop)


def test_new_takes_from_its_groups_only_what_fits_its_head(cli: Command, shop: Path) -> None:
    (shop / "words/_group.yaml").write_text("max_new_tokens: 5\nlicense: mit\n")
    assert cli("new", "words/n", "-d", "A number.", "--head", "regression", "-r", shop).code == 0
    assert cli("new", "words/t", "-d", "A text.", "-r", shop).code == 0
    registry = Registry(shop)
    assert (registry["words/n"].head, registry["words/n"].license) == ("regression", "mit")
    assert registry["words/t"].max_new_tokens == 5


def test_new_in_a_folder_that_is_not_there_yet_with_a_base_of_its_own(
    cli: Command, world: Path, tmp_path: Path
) -> None:
    done = cli("new", "a/b", "-d", "Text.", "--base", world / "_base", "-r", tmp_path / "mine")
    assert done.code == 0
    assert Registry(tmp_path / "mine")["a/b"].base_model == str((world / "_base").resolve())
    assert "base model is still to be named" in cli("new", "a/c", "-d", "Text.", "-r", tmp_path / "mine").err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("Words/Mood", "-d", "x"), "a task's name is"),
        (("a/b", "-d", "x", "--head", "classifcation"), "Did you mean `classification`?"),
        (("a/b", "-d", "x", "--prompt", "no place"), "{text}"),
        (("a/b", "-d", "x", "--head", "classification", "-l", "one"), "at least two"),
        (("a/b", "-d", "x", "-l", "one", "-l", "two"), "`labels` is only for"),
    ],
)
def test_a_wrong_card_is_refused_and_leaves_nothing(cli: Command, tmp_path: Path, arguments: tuple, said: str) -> None:
    fails(cli("new", *arguments), said)
    assert list(tmp_path.iterdir()) == []


def test_new_does_not_overwrite(cli: Command, shop: Path) -> None:
    before = files(shop)
    fails(cli("new", "words/mood", "-d", "Other.", "-r", shop), "is in", "already")
    assert files(shop) == before


# check


def test_check_of_a_registry_without_faults(cli: Command, world: Path) -> None:
    done = cli("check", "-r", world)
    assert (done.code, done.out) == (0, "")
    assert "3 tasks, no faults" in done.err


def test_check_lists_every_fault_of_every_file(cli: Command, shop: Path) -> None:
    (shop / "words/mood/task.yaml").write_text("exmaples: [a]\nhead: classifier\nlabels: [one]\n")
    bad = shop / "words/size/v1/adapter_model.safetensors"
    bad.write_bytes(bad.read_bytes()[:-1] + b"\x00\x01")
    cut = shop / "words/colour/v1/adapter_config.json"
    cut.unlink()
    before = files(shop)
    done = cli("check", "-r", shop)
    assert done.code == 1
    for fault in (
        "task.yaml:1:", "Did you mean `examples`?", "task.yaml:2:", "`description` is missing",
        "words/size/v1", "words/colour/v1",
    ):  # fmt: skip
        assert fault in done.out, fault
    assert done.err.startswith("error: A registry has no faults. Found ")
    assert files(shop) == before


def test_the_schema_accepts_the_cards_and_refuses_a_misspelt_field(cli: Command, world: Path, tmp_path: Path) -> None:
    schema = json.loads(cli("check", "--schema").out)
    for name in NAMES:
        jsonschema.validate(yaml.safe_load((world / name / "task.yaml").read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"description": "x", "exmaples": ["a"]}, schema)


# add

CARD = "description: Say how it feels.\nhead: classification\nlabels: [bad, good, so]\nexamples: [it is fine]\n"


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    """A card that lies somewhere else, as if it were of another registry."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "task.yaml").write_text(CARD + "adapter: v7\nsha256: '" + "0" * 64 + "'\n")
    return folder


def peft_folder(folder: Path, base: str, world: Path) -> Path:
    """What PEFT saves, without a note of ours."""
    random_adapter(world / "_base", "words/mood", folder, 5)
    (folder / "adapterhub.json").unlink()
    return named(folder, base)


def named(folder: Path, base: str) -> Path:
    """The same folder, whose configuration names this base."""
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_a_card_alone_is_added_without_an_adapter(cli: Command, shop: Path, loose: Path) -> None:
    done = cli("add", loose, "--name", "words/feeling", "-r", shop)
    assert (done.code, done.out) == (0, "words/feeling\n")
    assert "adapterhub train words/feeling" in done.err
    task = Registry(shop)["words/feeling"]
    assert (task.adapter, task.sha256, task.base_model) == (None, None, "_base")
    whole(shop)


def test_a_plain_peft_folder_is_adopted_sealed_and_answers(
    cli: Command, world: Path, shop: Path, loose: Path, tmp_path: Path
) -> None:
    adapter = peft_folder(tmp_path / "peft", "tests/tiny-llama", world)
    before = files(adapter)
    done = cli("add", loose / "task.yaml", "-n", "words/feeling", "-a", adapter, "-r", shop)
    assert (done.code, done.out) == (0, "words/feeling\n"), done.err
    assert "adapterhub run -t words/feeling" in done.err
    assert files(adapter) == before
    assert Registry(shop)["words/feeling"].adapter == "v1"
    assert (shop / "words/feeling/v1/adapterhub.json").is_file()
    whole(shop)
    answer = json.loads(cli("run", "a horse", "-t", "words/feeling", "-r", shop, "--json").out)
    assert set(answer["predictions"]) == {"bad", "good", "so"}


def test_add_again_needs_replace_and_makes_a_new_version(
    cli: Command, world: Path, shop: Path, loose: Path, tmp_path: Path
) -> None:
    adapter = random_adapter(world / "_base", "words/mood", tmp_path / "new", 6)
    before = files(shop)
    fails(cli("add", loose, "-n", "words/mood", "-a", adapter, "-r", shop), "already")
    assert files(shop) == before
    assert cli("add", loose, "-n", "words/mood", "-a", adapter, "-r", shop, "--replace").code == 0
    assert Registry(shop).versions("words/mood") == ["v1", "v2"]
    whole(shop)


def foreign(folder: Path) -> Path:
    """A PEFT folder that was trained on another and smaller model."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type=TaskType.CAUSAL_LM)
    peft = get_peft_model(tiny_llama(), config)
    peft.save_pretrained(folder)
    return named(folder, "acme/other")


def test_an_adapter_of_another_base_is_one_error_with_every_mismatch(
    cli: Command, shop: Path, loose: Path, tmp_path: Path
) -> None:
    before = files(shop)
    done = cli("add", loose, "-n", "words/feeling", "-a", foreign(tmp_path / "foreign"), "-r", shop)
    fails(
        done,
        "does not fit tests/tiny-llama:",
        "base_model_name_or_path should be tests/tiny-llama. Found acme/other.",
        *(f"layers.{layer}.self_attn.{module}" for layer in (0, 1) for module in ("q_proj", "v_proj")),
    )
    assert done.err.count("error:") == 1
    assert files(shop) == before
    assert "words/feeling" not in Registry(shop)
    whole(shop)


@pytest.mark.parametrize("harm", ["cut", "flipped", "gone"])
def test_damaged_adapter_files_are_refused(
    cli: Command, world: Path, shop: Path, loose: Path, tmp_path: Path, harm: str
) -> None:
    adapter = random_adapter(world / "_base", "words/mood", tmp_path / "bad", 7)
    weights = adapter / "adapter_model.safetensors"
    content = weights.read_bytes()
    if harm == "gone":
        weights.unlink()
    else:
        weights.write_bytes(content[:-10] if harm == "cut" else content[:-5] + b"\x7f" + content[-4:])
    before = files(shop)
    fails(cli("add", loose, "-n", "words/feeling", "-a", adapter, "-r", shop), "adapter_model.safetensors")
    assert files(shop) == before


def test_faults_of_a_loose_card_name_the_card_that_was_given(cli: Command, shop: Path, loose: Path) -> None:
    (loose / "task.yaml").write_text("exmaples: [a]\nhead: classifier\n")
    before = files(shop)
    done = cli("add", loose, "-n", "words/feeling", "-r", shop)
    fails(done, f"{loose / 'task.yaml'}:1:", "Did you mean `examples`?", f"{loose / 'task.yaml'}:2:")
    assert files(shop) == before


@pytest.mark.parametrize("name", ["../../outside", "Words", "a//b", "words/v1"])
def test_a_name_that_is_none_touches_no_file(cli: Command, shop: Path, loose: Path, tmp_path: Path, name: str) -> None:
    before = files(tmp_path)
    fails(cli("add", loose, "-n", name, "-r", shop), "a task's name is")
    assert files(tmp_path) == before


def test_no_card_and_no_base(cli: Command, shop: Path, loose: Path, tmp_path: Path) -> None:
    fails(cli("add", tmp_path / "none", "-n", "a/b", "-r", shop), "Found no file", "adapterhub new")
    (shop / "_group.yaml").unlink()
    fails(cli("add", loose, "-n", "a/b", "-a", loose, "-r", shop), "names none", "--base")
    fails(cli("add", loose, "-n", "a/b", "-a", loose, "--base", "no/such", "-r", shop), "'no/such'", "did not load")


# rm


def test_rm_asks_and_leaves_the_task_where_it_is_not_wanted(cli: Command, shop: Path) -> None:
    before = files(shop)
    for answer in ("n\n", "\n"):
        done = cli("rm", "words/mood", "-r", shop, stdin=answer)
        assert (done.code, done.out) == (1, "")
        assert "Remove it?" in done.err
        assert "error: words/mood was not removed" in done.err
    assert cli("rm", "words/mood", "-r", shop, stdin="").code == 1
    assert files(shop) == before
    assert cli("rm", "words/mood", "-r", shop, stdin="y\n").code == 0
    assert not (shop / "words/mood").exists()


def test_rm_yes_removes_this_task_only(cli: Command, shop: Path) -> None:
    before = files(shop)
    done = cli("rm", "words/mood", "-y", "-r", shop)
    assert (done.code, done.out) == (0, "")
    assert files(shop) == {path: content for path, content in before.items() if not path.startswith("words/mood/")}
    whole(shop)
    fails(cli("rm", "words/mood", "-y", "-r", shop), "No task 'words/mood'")


@pytest.fixture
def standing(cli: Command, shop: Path, tmp_path: Path) -> Path:
    """A registry's folder whose group `words` has an adapter on which two tasks stand."""
    for name, answer in (("words/mood", {"label": "good"}), ("words/size", {"value": 1.0})):
        path = tmp_path / "data" / name / "train.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps({"input": f"word {n}", **answer}) + "\n" for n in range(4)))
    options = ("--epochs", "1", "--rank", "2", "--validation", "0", "-r", shop)
    assert cli("train", "words", "--children", "-d", tmp_path / "data", *options).code == 0
    return shop


def test_check_and_fsck_tell_what_is_no_longer_there_to_stand_on(cli: Command, standing: Path) -> None:
    sha256 = Registry(standing)["words"].sha256
    assert cli("prune", "words", "--rank", "1", "-r", standing).code == 0  # the group's newer version changes nothing
    for command in ("check", "fsck"):
        assert cli(command, "-r", standing).code == 0
    shutil.rmtree(standing / "words/v1")
    for command in ("check", "fsck"):
        done = cli(command, "-r", standing)
        assert done.code == 1
        lines = done.out.splitlines()
        assert [line.partition(":")[0] for line in lines] == ["words/mood", "words/size"]
        assert all(f"stands on words with sha256 {sha256}" in line for line in lines)
        assert all("Restore it from a copy, or train" in line for line in lines)
        told = json.loads(cli(command, "--json", "-r", standing).out)
        assert told["faults"] == lines
    assert json.loads(cli("check", "--json", "-r", standing).out).keys() == {"registry", "faults"}


def test_rm_of_a_group_names_the_tasks_that_stand_on_it(cli: Command, standing: Path) -> None:
    said = "2 task(s) stand on its adapter and do not answer without it: words/mood, words/size"
    before = files(standing)
    assert said in cli("rm", "words", "-r", standing, stdin="n\n").err
    assert files(standing) == before
    assert "stand on its adapter" not in cli("rm", "words/colour", "-y", "-r", standing).err
    cli("retire", "words", "-r", standing)
    done = cli("rm", "words", "-y", "-r", standing)
    assert (done.code, said in done.err) == (0, True)
    assert cli("check", "-r", standing).code == 1
