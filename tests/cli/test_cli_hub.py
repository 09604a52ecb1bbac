"""`push` and `pull` against a stand-in for the Hub's API."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli_client import Client, client
from cli_world import Command, Done, fails, files, whole
from hub_server import HubServer, serve
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from adapterhub.adapter import stored_tensors
from adapterhub.model import load_base
from adapterhub.registry import Registry

pytest_plugins = ("cli_fixtures",)


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def online(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with client(server.url, tmp_path_factory.mktemp("hf")) as running:
        yield running


def test_a_task_travels_and_answers_elsewhere(
    online: Client, server: HubServer, cli: Command, world: Path, tmp_path: Path
) -> None:
    code, out, err = online("push", "words/mood", "acme/tasks", "-r", world)
    assert code == 0, err
    url = out.strip()
    commit = server.repositories["acme/tasks"].refs["main"]
    assert url == f"hf://acme/tasks@{commit}/words/mood"
    assert f"adapterhub pull {url}" in err

    # Another registry with the same base: its card calls the base `_base`, the pushed one calls it by its id.
    other = tmp_path / "other"
    shutil.copytree(world / "_base", other / "_base")
    (other / "_group.yaml").write_text("base_model: _base\n")
    code, out, err = online("pull", url, "-r", other)
    assert (code, out) == (0, "words/mood\n"), err
    assert commit in err
    here, there = Registry(other)["words/mood"], Registry(world)["words/mood"]
    assert (here.sha256, here.base_model, here.examples) == (there.sha256, "_base", there.examples)
    assert files(other / "words/mood/v1") == files(world / "words/mood/v1")
    whole(other)
    asked = ("run", "a horse", "-t", "words/mood", "--json", "-r")
    assert cli(*asked, other) == cli(*asked, world)

    code, out, err = online("pull", url, "-n", "moods/second", "-r", other)
    assert (code, out) == (0, "moods/second\n"), err
    before = files(other)
    fails(Done(*online("pull", url, "-r", other)), "already")
    assert files(other) == before
    assert online("pull", url, "-r", other, "--replace")[0] == 0
    assert Registry(other).versions("words/mood") == ["v1", "v2"]


def test_what_cannot_be_pulled_leaves_nothing(online: Client, server: HubServer, shop: Path, tmp_path: Path) -> None:
    url = online("push", "words/size", "acme/faulty", "-r", shop)[1].strip()
    repo = server.repositories["acme/faulty"]
    before = files(shop)
    fails(Done(*online("pull", "hf://acme/none/words/size", "-n", "a/b", "-r", shop)), "acme/none")
    weights = repo.commits[repo.refs["main"]]["words/size/adapter_model.safetensors"]
    flipped = repo.commit({"words/size/adapter_model.safetensors": weights[:-5] + b"\x7f" + weights[-4:]})
    changed = f"hf://acme/faulty@{flipped}/words/size"
    fails(Done(*online("pull", changed, "-n", "a/b", "-r", shop)), "adapter_model.safetensors")
    repo.commit({"words/size/task.yaml": b"exmaples: [a]\n"})
    fails(Done(*online("pull", "hf://acme/faulty/words/size", "-n", "a/b", "-r", shop)), "Did you mean `examples`?")
    assert files(shop) == before
    whole(shop)
    # The commit that was pushed is still what it was.
    assert online("pull", url, "-n", "a/b", "-r", shop)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pull", "acme/tasks"), "hf://"),
        (("pull", "hf://acme/tasks"), "--name"),
        (("pull", "hf://acme/tasks/Words"), "a task's name is"),
        (("push", "words/moood", "acme/tasks"), "Did you mean `words/mood`?"),
        (("push", "words/mood", "tasks"), "org/repo"),
    ],
)
def test_bad_arguments_send_nothing(cli: Command, world: Path, arguments: tuple[str, ...], said: str) -> None:
    fails(cli(*arguments, "-r", world), said)


def test_a_task_without_an_adapter_is_not_pushed(cli: Command, shop: Path) -> None:
    cli("new", "words/bare", "-d", "Nothing yet.", "-r", shop)
    fails(cli("push", "words/bare", "acme/tasks", "-r", shop), "'words/bare' has none", "adapterhub train")
    assert json.loads(cli("info", "words/bare", "--json", "-r", shop).out)["versions"] == []


def test_int8_travels_as_it_is_and_answers(
    online: Client, server: HubServer, cli: Command, shop: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    made = json.loads(cli("prune", "words/mood", "--int8", "--out", small, "--json", "-r", shop).out)
    card = Registry(shop)["words/mood"]
    Registry(shop).add(replace(card, metrics={"accuracy": 0.9}), replace=True)
    code, out, err = online("push", "words/mood", "acme/small", "--dtype", "int8", "--json", "-r", shop)
    assert code == 0, err
    told = json.loads(out)
    assert (told["task"], told["dtype"], told["sha256"]) == ("words/mood", "int8", made["sha256"])
    assert (told["bytes_before"], told["bytes_after"]) == (made["bytes_before"], made["bytes_after"])
    assert told["int8_error"] == made["int8_error"]
    assert f"{told['bytes_before']:,} bytes before, {told['bytes_after']:,} now: " in err
    assert f"the values are {told['int8_error']:.2%} off" in err
    assert "PEFT refuses int8 files" in err
    tree = server.repositories["acme/small"].commits[server.repositories["acme/small"].refs["main"]]
    readme = tree["words/mood/README.md"].decode()
    assert "library_name: adapterhub" in readme
    assert "0.9" not in readme  # it was measured of the adapter in float32
    assert "adapterhub pull hf://acme/small/words/mood" in readme

    other = tmp_path / "other"
    shutil.copytree(shop / "_base", other / "_base")
    (other / "_group.yaml").write_text("base_model: _base\n")
    code, out, err = online("pull", told["url"], "--json", "-r", other)
    assert code == 0, err
    pulled = json.loads(out)
    assert (pulled["task"], pulled["adapter"], pulled["sha256"]) == ("words/mood", "v1", made["sha256"])
    assert pulled["commit"] in told["url"]
    assert files(other / "words/mood/v1") == files(small)
    assert dict(Registry(other)["words/mood"].metrics) == {}
    whole(other)
    asked = ("run", "a horse", "-t", "words/mood", "--json", "-r")
    cli("add", shop / "words/mood", "--name", "words/mood", "--replace", "-a", small, "--max-steal", "1", "-r", shop)
    assert cli(*asked, other).out == cli(*asked, shop).out != ""

    again = Done(*online("push", "words/mood", "acme/small", "--dtype", "int8", "-r", other))
    fails(again, "has values in floating point. Found int8", "Use it as it is")
    code, _, err = online("push", "words/mood", "acme/second", "-r", other)  # as it is: int8, and the card says so
    assert code == 0, err
    second = server.repositories["acme/second"]
    assert "PEFT refuses int8 files" in second.commits[second.refs["main"]]["words/mood/README.md"].decode()


def test_the_code_of_an_int8_card_makes_what_peft_loads(
    online: Client, server: HubServer, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert online("push", "words/size", "acme/code", "--dtype", "int8", "-r", shop)[0] == 0
    repo = server.repositories["acme/code"]
    tree = repo.commits[repo.refs["main"]]
    for name, content in tree.items():
        path = tmp_path / "snapshot" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    lines = tree["words/size/README.md"].decode().partition("## Use\n")[2].splitlines()
    begin = lines.index("    from pathlib import Path")
    code = textwrap.dedent("\n".join(lines[begin:]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo_id: str(tmp_path / "snapshot"))
    monkeypatch.setattr("adapterhub.model.load_base", lambda base: load_base(shop / "_base"))
    exec(compile(code, "README.md", "exec"), {"__name__": "card"})
    model = AutoModelForSequenceClassification.from_pretrained(shop / "_base", num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = 0
    loaded = PeftModel.from_pretrained(model, tmp_path / "floats").eval()
    stored = stored_tensors(tmp_path / "snapshot/words/size")
    found = dict(loaded.named_parameters())
    factors = {key: value for key, value in stored.items() if "lora_" in key}
    assert factors
    for key, value in factors.items():
        assert torch.equal(found[key.replace(".weight", ".default.weight")], value), key
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(loaded.unload(), tmp_path / "snapshot/words/size")


def test_what_stands_on_a_group_travels_behind_it(
    online: Client, server: HubServer, cli: Command, shop: Path, tmp_path: Path
) -> None:
    rows = [{"input": f"word {n}", "label": ("bad", "good", "so")[n % 3]} for n in range(6)]
    numbers = [{"input": f"word {n}", "value": float(n)} for n in range(6)]
    for name, lines in (("words/mood", rows), ("words/size", numbers)):
        path = tmp_path / "data" / name / "train.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("--epochs", "1", "--rank", "2", "--validation", "0", "-r", shop)
    assert cli("train", "words", "--children", "-d", tmp_path / "data", *options).code == 0

    code, out, err = online("push", "words/mood", "acme/stack", "-r", shop)
    assert code == 0, err
    assert "It stands on words, which has to be there first: adapterhub push words acme/stack" in err
    repo = server.repositories["acme/stack"]
    readme = repo.commits[repo.refs["main"]]["words/mood/README.md"].decode()
    assert "- Stands on the adapters of: words" in readme
    assert "PeftModel" not in readme  # it would load it alone
    child = out.strip()
    group = online("push", "words", "acme/stack", "-r", shop)[1].strip()

    other = tmp_path / "other"
    shutil.copytree(shop / "_base", other / "_base")
    (other / "_group.yaml").write_text("base_model: _base\n")
    fails(Done(*online("pull", child, "-r", other)), "`stack` should name tasks of the registry. Found 'words'")
    assert online("pull", group, "-r", other)[0] == 0
    code, out, err = online("pull", child, "--json", "-r", other)
    assert code == 0, err
    assert json.loads(out)["stack"] == ["words"]
    assert Registry(other)["words/mood"].sha256 == Registry(shop)["words/mood"].sha256
    whole(other)
    asked = ("run", "a horse", "-t", "words/mood", "--json", "-r")
    assert cli(*asked, other).out == cli(*asked, shop).out != ""


def test_push_refuses_another_dtype_and_a_task_without_an_adapter(cli: Command, shop: Path) -> None:
    wrong = cli("push", "words/mood", "acme/tasks", "--dtype", "int4", "-r", shop)
    assert (wrong.code, wrong.out) == (2, "")
    assert "int8" in wrong.err
    cli("new", "words/bare", "-d", "Nothing yet.", "-r", shop)
    fails(cli("push", "words/bare", "acme/tasks", "--dtype", "int8", "-r", shop), "'words/bare' has none")
    fails(cli("push", "words/mood", "tasks", "--dtype", "int8", "-r", shop), "A repository is named `org/repo`")
