"""push against a stand-in for the Hub's API, through the Hub's own client in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_client import Client
from hub_files import CONFIG, README, adapter_at, read, weights, write
from hub_server import HubServer

pytest_plugins = ("hub_fixtures",)


def test_what_is_pulled_is_what_was_pushed(server: HubServer, hub: Client, folder: Path, tmp_path: Path):
    commit = hub("push", folder, "acme/nested", path_in_repo="language/grammar", card=README)
    assert server.repositories["acme/nested"].refs["main"] == commit
    tree = server.repositories["acme/nested"].commits[commit]
    assert {name for name in tree if name != ".gitattributes"} == {
        f"language/grammar/{name}" for name in [*read(folder), "README.md"]
    }
    into = tmp_path / "new" / "grammar"
    assert hub("pull", "acme/nested", path_in_repo="language/grammar", into=into) == commit
    assert read(into) == {**read(folder), "README.md": README.encode()}
    assert [path.name for path in into.parent.iterdir()] == ["grammar"]


def test_at_the_root_of_a_repository(hub: Client, folder: Path, tmp_path: Path):
    commit = hub("push", folder, "acme/root", card=README)
    into = tmp_path / "empty"
    into.mkdir()
    assert hub("pull", "acme/root", into=into) == commit
    assert read(into) == {**read(folder), "README.md": README.encode()}


def test_one_push_is_one_commit_and_unchanged_files_make_none(server: HubServer, hub: Client, folder: Path):
    first = hub("push", folder, "acme/again")
    repo = server.repositories["acme/again"]
    assert len(repo.commits) == 2  # the repository's own first commit, and ours
    assert hub("push", folder, "acme/again") == first
    (folder / "adapter_model.safetensors").write_bytes(weights(1))
    second = hub("push", folder, "acme/again")
    assert len(repo.commits) == 3
    assert second == repo.refs["main"] != first


def test_files_of_an_earlier_push_that_describe_other_bytes_are_deleted(server: HubServer, hub: Client, folder: Path):
    hub("push", folder, "acme/stale", path_in_repo="a", card=README)
    (folder / "adapterhub.json").unlink()
    commit = hub("push", folder, "acme/stale", path_in_repo="a")
    left = server.repositories["acme/stale"].commits[commit]
    assert "a/adapterhub.json" not in left
    assert {"a/task.yaml", "a/README.md", ".gitattributes"} <= set(left)


def test_a_push_leaves_the_other_tasks_alone(server: HubServer, hub: Client, folder: Path):
    repo = server.repository("acme/others", {**adapter_at("b", 7), "LICENSE": b"text"})
    commit = hub("push", folder, "acme/others", path_in_repo="a")
    assert repo.commits[commit]["b/adapter_model.safetensors"] == weights(7)
    assert repo.commits[commit]["LICENSE"] == b"text"


def test_a_new_repository_is_private_when_asked(server: HubServer, hub: Client, folder: Path):
    hub("push", folder, "acme/secret", private=True)
    hub("push", folder, "acme/open")
    assert server.repositories["acme/secret"].private
    assert not server.repositories["acme/open"].private


def test_of_two_pushes_at_once_one_is_refused(server: HubServer, hub: Client, folder: Path):
    repo = server.repository("acme/race")
    repo.race = {"a/task.yaml": b"theirs"}
    said = hub("push", folder, "acme/race", path_in_repo="a")
    assert said.startswith("HubError: Cannot push to hf://acme/race@main/a: somebody else changed `acme/race`")
    tree = repo.commits[repo.refs["main"]]
    assert tree["a/task.yaml"] == b"theirs"
    assert "a/adapter_model.safetensors" not in tree
    assert hub("push", folder, "acme/race", path_in_repo="a") == repo.refs["main"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("adapter_model.bin", b"x", "`adapter_model.bin` is of a kind that never travels"),
        ("optimizer.pt", b"x", "`optimizer.pt` is of a kind that never travels"),
        (".env", b"x", "`.env` is of a kind that never travels"),
        ("notes.md", b"x", "`notes.md` is of a kind that never travels"),
        ("extra.safetensors", b"\x80\x04pickle", "`extra.safetensors` is not a whole safetensors file"),
        ("adapter_model.safetensors", weights()[:-8], "`adapter_model.safetensors` is not a whole safetensors file"),
    ],
)
def test_other_files_are_refused_before_anything_is_sent(
    server: HubServer, hub: Client, folder: Path, name: str, content: bytes, said: str
):
    (folder / name).write_bytes(content)
    answer = hub("push", folder, "acme/refused")
    assert answer.startswith("InputError: ")
    assert said in answer
    assert "acme/refused" not in server.repositories


def test_all_faults_of_a_folder_are_told_at_once(server: HubServer, hub: Client, folder: Path, tmp_path: Path):
    (folder / "adapter_config.json").unlink()
    (folder / "task.yaml").unlink()
    (folder / "task.yaml").symlink_to(write(tmp_path, {"private.yaml": b"secret"}) / "private.yaml")
    (folder / "checkpoint-10").mkdir()
    (folder / "a.pkl").write_bytes(b"x")
    answer = hub("push", folder, "acme/refused")
    for fault in (
        "`adapter_config.json` is missing",
        "`task.yaml` is a symbolic link that leaves the folder",
        "`checkpoint-10` is a folder",
        "`a.pkl` is of a kind",
    ):
        assert fault in answer
    assert "acme/refused" not in server.repositories


def test_a_link_inside_the_folder_is_sent_as_its_content(server: HubServer, hub: Client, folder: Path):
    (folder / "copy.json").symlink_to("adapter_config.json")
    commit = hub("push", folder, "acme/link")
    assert server.repositories["acme/link"].commits[commit]["copy.json"] == CONFIG


def test_no_folder_to_push(hub: Client, tmp_path: Path):
    assert hub("push", tmp_path / "none", "acme/x").startswith("InputError: What is pushed is a folder.")


def test_a_card_that_the_hub_refuses(server: HubServer, hub: Client, folder: Path):
    said = hub("push", folder, "acme/card", card="# no front matter")
    assert said.startswith("InputError: Cannot push to hf://acme/card@main: Invalid metadata in README.md")
    assert "no front matter" in said
    assert (
        "adapter_config.json"
        not in server.repositories["acme/card"].commits[server.repositories["acme/card"].refs["main"]]
    )


def test_a_card_whose_front_matter_is_no_yaml(server: HubServer, hub: Client, folder: Path):
    said = hub("push", folder, "acme/yaml", path_in_repo="a", card="---\ntags: [a\n---\n# x\n")
    assert said.startswith("InputError: A model card begins with YAML between two lines `---`.")
    assert "acme/yaml" not in server.repositories


def test_no_permission_to_write(hub: Client, folder: Path):
    assert "this account has no permission for `foreign/repo` (403)" in hub("push", folder, "foreign/repo")


# Without a network


def test_offline_nothing_is_pushed(offline: Client, folder: Path):
    answer = offline("push", folder, "acme/x")
    assert answer.startswith("HubError: Cannot push to hf://acme/x@main: HF_HUB_OFFLINE is set")


@pytest.mark.parametrize("repo_id", ["grammar", "acme/", "a/b/c", "acme/..", "acme/a b"])
@pytest.mark.parametrize("function", ["push", "pull"])
def test_malformed_repository_names(hub: Client, folder: Path, tmp_path: Path, repo_id: str, function: str):
    said = hub("push", folder, repo_id) if function == "push" else hub("pull", repo_id, into=tmp_path / "x")
    assert said.startswith(f"InputError: A repository is named `org/repo`. Found `{repo_id}`.")


@pytest.mark.parametrize("path", ["../x", "/a", "a//b", "a/.git", "a b", "a/*"])
def test_malformed_folders(hub: Client, folder: Path, tmp_path: Path, path: str):
    for said in (
        hub("push", folder, "acme/x", path_in_repo=path),
        hub("pull", "acme/x", path_in_repo=path, into=tmp_path / "x"),
    ):
        assert said.startswith("InputError: A folder inside a repository")
