"""pull against a stand-in for the Hub's API: whole or not at all, one commit, and each refusal told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_client import Client, client
from hub_files import CONFIG, adapter_at, read, weights
from hub_server import HubServer

pytest_plugins = ("hub_fixtures",)


def test_an_older_commit_gives_the_older_bytes(hub: Client, folder: Path, tmp_path: Path):
    first = hub("push", folder, "acme/versions", path_in_repo="a")
    (folder / "adapter_model.safetensors").write_bytes(weights(1))
    second = hub("push", folder, "acme/versions", path_in_repo="a")
    assert hub("pull", "acme/versions", path_in_repo="a", revision=first, into=tmp_path / "old") == first
    assert hub("pull", "acme/versions", path_in_repo="a", into=tmp_path / "new") == second
    assert (tmp_path / "old/adapter_model.safetensors").read_bytes() == weights(0)
    assert (tmp_path / "new/adapter_model.safetensors").read_bytes() == weights(1)


def test_a_branch_that_moves_during_the_pull_does_not_mix_commits(server: HubServer, hub: Client, tmp_path: Path):
    repo = server.repository("acme/moving", adapter_at("a", seed=0))
    before = repo.refs["main"]
    repo.moving = adapter_at("a", seed=1)
    assert hub("pull", "acme/moving", path_in_repo="a", into=tmp_path / "a") == before
    assert (tmp_path / "a/adapter_model.safetensors").read_bytes() == weights(0)
    assert repo.refs["main"] != before


def test_branches_and_tags_are_resolved_to_their_commit(server: HubServer, hub: Client, tmp_path: Path):
    repo = server.repository("acme/tags", adapter_at("", seed=0))
    repo.refs["v1.0"] = repo.refs["main"]
    repo.commit(dict(adapter_at("", seed=1)))
    assert hub("pull", "acme/tags", revision="v1.0", into=tmp_path / "a") == repo.refs["v1.0"]
    assert (tmp_path / "a/adapter_model.safetensors").read_bytes() == weights(0)


def test_a_group_is_pulled_without_its_children_and_without_other_kinds(server: HubServer, hub: Client, tmp_path: Path):
    files = {
        **adapter_at("language", 0),
        **adapter_at("language/grammar", 1),
        "language/adapter_model.bin": b"pickle",
        "language/run.py": b"raise SystemExit",
        "language/.secret.json": b"{}",
    }
    server.repository("acme/tree", files)
    hub("pull", "acme/tree", path_in_repo="language", into=tmp_path / "language")
    assert set(read(tmp_path / "language")) == {"adapter_config.json", "adapter_model.safetensors"}
    asked = [path for _, path in server.log if "acme/tree/resolve" in path]
    assert not [path for path in asked if path.endswith((".bin", ".py")) or "grammar" in path]


def test_a_place_that_is_taken(hub: Client, folder: Path, tmp_path: Path):
    (taken := tmp_path / "file").write_text("x")
    for into in (folder, taken):
        said = hub("pull", "acme/root", into=into)
        assert said.startswith("InputError: A folder is pulled to a new place.")
    assert taken.read_text() == "x"


# What the Hub may answer


def nothing_left(tmp_path: Path) -> bool:
    return not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("repo_id", "settings", "said"),
    [
        ("acme/none", {}, "there is no repository `acme/none`, or it is private"),
        ("acme/full", {"revision": "v9"}, "`acme/full` has no revision `v9`"),
        ("acme/full", {"revision": "f" * 40}, f"`acme/full` has no revision `{'f' * 40}`"),
        ("acme/full", {"path_in_repo": "language/gramar"}, "Did you mean `language/grammar`?"),
        ("acme/full", {"path_in_repo": "old"}, "Found `old/adapter_model.bin`, a pickle, which is never read."),
        ("acme/gated", {}, "`acme/gated` is gated"),
    ],
)
def test_what_cannot_be_pulled(
    server: HubServer, hub: Client, tmp_path: Path, repo_id: str, settings: dict[str, str], said: str
):
    server.repository(
        "acme/full",
        {**adapter_at("language/grammar"), "old/adapter_config.json": CONFIG, "old/adapter_model.bin": b"x"},
    )
    server.repository("acme/gated").gated = True
    answer = hub("pull", repo_id, **settings, into=tmp_path / "x")
    assert answer.startswith(f"HubError: Cannot pull hf://{repo_id}@")
    assert said in answer
    assert nothing_left(tmp_path)


def test_a_download_that_breaks_off_leaves_nothing_and_is_completed_later(
    server: HubServer, hub: Client, offline: Client, tmp_path: Path
):
    repo = server.repository("acme/broken", adapter_at("a"))
    repo.cut = "a/adapter_model.safetensors"
    answer = hub("pull", "acme/broken", path_in_repo="a", into=tmp_path / "a")
    assert answer.startswith("HubError: Cannot pull hf://acme/broken@main/a: ")
    assert nothing_left(tmp_path)
    # Half of a snapshot in the cache is not taken for a whole one.
    answer = offline("pull", "acme/broken", path_in_repo="a", into=tmp_path / "a")
    assert "HF_HUB_OFFLINE is set and this commit is not, or not wholly, in the local cache" in answer
    assert nothing_left(tmp_path)
    repo.cut = ""
    assert hub("pull", "acme/broken", path_in_repo="a", into=tmp_path / "a") == repo.refs["main"]
    assert (tmp_path / "a/adapter_model.safetensors").read_bytes() == weights()


def test_who_is_not_known_is_told_so(server: HubServer, folder: Path, tmp_path: Path):
    server.repository("acme/hidden", adapter_at("")).private = True
    (into := tmp_path / "into").mkdir()
    with client(server.url, tmp_path / "hf", token="hf_wrong") as wrong:
        assert "the token is not valid (401)" in wrong("pull", "acme/hidden", into=into / "x")
        assert "the token is not valid (401)" in wrong("push", folder, "acme/hidden")
    with client(server.url, tmp_path / "hf", token="") as stranger:
        assert "or it is private and this account does not see it" in stranger("pull", "acme/hidden", into=into / "x")
        assert stranger("push", folder, "acme/unseen").startswith("HubError: ")
        assert len(stranger("push", folder, "acme/with-token", token="hf_test")) == 40
    assert nothing_left(into)


def test_offline_the_cache_answers(hub: Client, offline: Client, server: HubServer, folder: Path, tmp_path: Path):
    commit = hub("push", folder, "acme/cached", path_in_repo="a")
    hub("pull", "acme/cached", path_in_repo="a", into=tmp_path / "online")
    requests = len(server.log)
    for number, revision in enumerate(("main", commit)):
        into = tmp_path / str(number)
        assert offline("pull", "acme/cached", path_in_repo="a", revision=revision, into=into) == commit
        assert read(into) == read(folder)
    assert len(server.log) == requests


@pytest.mark.parametrize("revision", ["main", "e" * 40])
def test_offline_without_a_cached_copy(offline: Client, tmp_path: Path, revision: str):
    answer = offline("pull", "acme/never-seen", revision=revision, into=tmp_path / "x")
    assert answer.startswith("HubError: Cannot pull hf://acme/never-seen@")
    assert "HF_HUB_OFFLINE is set" in answer
    assert nothing_left(tmp_path)


def test_offline_a_folder_that_was_not_pulled_before(server: HubServer, hub: Client, offline: Client, tmp_path: Path):
    server.repository("acme/half", {**adapter_at("a"), **adapter_at("b")})
    hub("pull", "acme/half", path_in_repo="a", into=tmp_path / "a")
    answer = offline("pull", "acme/half", path_in_repo="b", into=tmp_path / "b")
    assert "not wholly, in the local cache" in answer
    assert not (tmp_path / "b").exists()


def test_no_server_at_the_address(hub: Client, server: HubServer, home: Path, folder: Path, tmp_path: Path):
    commit = hub("push", folder, "acme/down", path_in_repo="a")
    hub("pull", "acme/down", path_in_repo="a", into=tmp_path / "online")
    with client("http://127.0.0.1:9", home) as unreachable:
        assert "the Hub cannot be reached" in unreachable("pull", "acme/never-seen", into=tmp_path / "x")
        assert "the Hub cannot be reached" in unreachable("push", folder, "acme/x")
        assert unreachable("pull", "acme/down", path_in_repo="a", into=tmp_path / "cached") == commit
    assert read(tmp_path / "cached") == read(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cached", "online", "task"]


# With bare PEFT

BARE_PEFT = """
import sys, torch
from peft import PeftModel
from conftest import tiny_llama
base = tiny_llama()
model = PeftModel.from_pretrained(base, sys.argv[1], subfolder="language/grammar").eval()
with torch.no_grad():
    torch.save(model(torch.arange(2, 12)[None]).logits, sys.argv[2])
"""
