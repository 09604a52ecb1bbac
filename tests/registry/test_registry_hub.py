"""Adapters that a card names by their pinned place on the Hub. `pull` itself is tested in its own room."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from registry_folders import make_adapter

import adapterhub.registry._hub as hub
from adapterhub.adapter import content_hash
from adapterhub.errors import HubError, InputError, IntegrityError
from adapterhub.registry import Registry
from adapterhub.task import Task

COMMIT = "0123456789abcdef0123456789abcdef01234567"
URL = f"hf://acme/adapters@{COMMIT}/language/grammar"


class Shop:
    """Stands where the Hub is: hands out one folder and notes each order."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.orders = folder, []

    def pull(self, repo_id: str, *, path_in_repo: str, revision: str, into: Path) -> str:
        self.orders.append((repo_id, path_in_repo, revision))
        if into.exists():
            raise InputError("taken")
        into.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.folder, into)
        return revision


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    shop = Shop(make_adapter(tmp_path / "adapter"))
    monkeypatch.setattr(hub, "pull", shop.pull)
    return shop


def test_an_adapter_is_pulled_once_and_kept(tmp_path: Path, shop: Shop) -> None:
    registry = Registry(tmp_path / "registry")
    registry.add(Task("a", "x", adapter=URL, sha256=content_hash(shop.folder)))
    assert shop.orders == []
    assert registry.verify() == []
    first, second = registry.adapter_path("a"), registry.adapter_path("a")
    assert first == second
    assert first is not None
    assert first.is_relative_to(registry.root / ".catalog" / "hub" / COMMIT)
    assert content_hash(first) == registry["a"].sha256
    assert shop.orders == [("acme/adapters", "language/grammar", COMMIT)]
    assert registry.versions("a") == []
    (first / "adapter_model.safetensors").write_bytes(b"")
    (fault,) = registry.verify()
    assert "adapter_model.safetensors" in fault


def test_a_card_without_a_hash_gets_one_when_it_is_added(tmp_path: Path, shop: Shop) -> None:
    stored = Registry(tmp_path / "registry").add(Task("a", "x", adapter=URL))
    assert stored.sha256 == content_hash(shop.folder)


def test_what_is_not_what_the_card_states_is_not_kept(tmp_path: Path, shop: Shop) -> None:
    registry = Registry(tmp_path / "registry")
    registry.add(Task("a", "x", adapter=URL, sha256="a" * 64))
    for _ in range(2):
        with pytest.raises(IntegrityError, match="not what its card states"):
            registry.adapter_path("a")
    assert len(shop.orders) == 2
    assert registry.verify() == []


def test_a_process_that_was_faster_is_no_fault(tmp_path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path / "registry")
    registry.add(Task("a", "x", adapter=URL, sha256=content_hash(shop.folder)))

    def slow(repo_id: str, *, path_in_repo: str, revision: str, into: Path) -> str:
        shop.pull(repo_id, path_in_repo=path_in_repo, revision=revision, into=into)
        return shop.pull(repo_id, path_in_repo=path_in_repo, revision=revision, into=into)

    monkeypatch.setattr(hub, "pull", slow)
    assert registry.adapter_path("a") is not None


def test_a_hub_that_cannot_be_reached_is_told(tmp_path: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path / "registry")
    registry.add(Task("a", "x", adapter=URL, sha256=content_hash(shop.folder)))

    def closed(*_: object, **__: object) -> str:
        raise HubError("no network")

    monkeypatch.setattr(hub, "pull", closed)
    with pytest.raises(HubError, match="no network"):
        registry.adapter_path("a")
