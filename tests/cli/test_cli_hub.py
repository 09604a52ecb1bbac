"""`push` and `pull` against a stand-in for the Hub's API."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_client import Client, client
from cli_world import Command, Done, fails, files, whole
from hub_server import HubServer, serve

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
