"""`import`, `export`, `reindex`, `fsck`, `retire`, `restore`: a registry as a whole, in a folder and in a database."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_world import Command, fails, files, whole

import adapterhub.cli._bulk as bulk
import adapterhub.encoder as encoder_room
from adapterhub.registry import Registry

pytest_plugins = ("cli_fixtures",)

NAMES = ["words/colour", "words/mood", "words/size"]


def rows(count: int) -> str:
    lines = [{"name": f"g{n % 300}/t{n}", "description": f"Task {n}."} for n in range(count)]
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_there_and_back_through_a_database(cli: Command, shop: Path, tmp_path: Path) -> None:
    assert cli("retire", "words/mood", "-r", shop).code == 0
    out = cli("export", tmp_path / "tasks.jsonl", "-r", shop)
    assert (out.code, out.out) == (0, f"{tmp_path}/tasks.jsonl\n")
    assert "3 tasks; 3 adapters copied" in out.err
    assert "adapterhub import" in out.err
    database = f"sqlite:///{tmp_path}/tasks.db"
    done = cli("import", "tasks.jsonl", "--into", database, "--json")
    assert json.loads(done.out) == {"registry": database, "added": 3, "replaced": 0, "same": 0}
    again = cli("import", "tasks.jsonl", "-r", "sqlite:///tasks.db")
    assert (again.code, again.out) == (0, "0 added, 0 replaced, 3 there already\n")
    assert "Next: adapterhub ls -r sqlite:///tasks.db" in again.err
    assert cli("fsck", "-r", database).code == 0
    assert cli("restore", "words/mood", "-r", database).code == 0
    assert [row["name"] for row in json.loads(cli("ls", "-r", database, "--json").out)] == NAMES
    told = json.loads(cli("info", "words/mood", "-r", database, "--json").out)
    assert told["versions"] == ["v1"]
    assert cli("export", tmp_path / "cards", "-r", database).code == 0
    assert list(Registry(tmp_path / "cards")) == NAMES
    whole(tmp_path / "cards")


def test_a_database_is_run_and_changed_like_a_folder(cli: Command, shop: Path, tmp_path: Path) -> None:
    database = f"sqlite:///{shop}/tasks.db"  # beside the base model
    assert cli("export", tmp_path / "t.jsonl", "-r", shop).code == 0
    assert cli("import", tmp_path / "t.jsonl", "--into", database).code == 0
    answer = json.loads(cli("run", "a horse", "-t", "words/mood", "-r", database, "--json").out)
    assert answer["task"] == "words/mood"
    done = cli("new", "words/new", "-d", "A new one.", "--base", "_base", "-r", database, "--max-steal", "1")
    assert (done.code, done.out) == (0, "words/new\n")
    assert cli("add", shop / "words/mood", "-n", "words/copy", "-r", database, "--max-steal", "1").code == 0
    fails(cli("new", "words/new", "-d", "Again.", "-r", database), "already")
    assert cli("rm", "words/new", "-y", "-r", database).code == 0
    assert [row["name"] for row in json.loads(cli("ls", "-r", database, "--json").out)] == sorted(
        [*NAMES, "words/copy"]
    )
    fails(cli("info", "words/new", "-r", database), "No task 'words/new'", "adapterhub ls words")
    fails(cli("ls", "-r", "sqlite:///none.db"), "Found no file 'none.db'", "adapterhub new")
    assert not Path("none.db").exists()


def test_faults_of_lines_are_listed_and_nothing_is_there(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(rows(2) + '{"name": "Bad", "descripton": "x"}\n')
    for target in ("cards", "sqlite:///t.db"):
        done = cli("import", "t.jsonl", "--into", target)
        fails(done, "t.jsonl:3:", "Did you mean `description`?", "Nothing was imported: 3 faults")
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]
    fails(cli("import", "none.jsonl"), "Found no file none.jsonl")


def test_ls_of_a_large_registry_shows_groups_with_counts(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(rows(900))
    cli("import", "t.jsonl", "--into", "sqlite:///t.db")
    shown = cli("ls", "-r", "sqlite:///t.db")
    assert "900 tasks" in shown.out
    assert "g0 3 tasks" in shown.out
    assert "… and 250 more" in shown.out
    assert len(shown.out.splitlines()) == 52
    assert "--depth 2" in shown.err
    assert "t0" in cli("ls", "-r", "sqlite:///t.db", "--depth", "2").out
    below = cli("ls", "g7", "-r", "sqlite:///t.db").out
    assert all(name in below for name in ("t7", "t307", "t607", "no adapter"))
    assert len(json.loads(cli("ls", "-r", "sqlite:///t.db", "--json").out)) == 900
    groups = json.loads(cli("ls", "-r", "sqlite:///t.db", "--json", "--depth", "1").out)
    assert (len(groups), groups[0]) == (300, {"name": "g0", "tasks": 3})
    fails(cli("ls", "g7000", "-r", "sqlite:///t.db"), "No branch 'g7000'")


def test_fsck_names_repairs_and_says_so(cli: Command, shop: Path) -> None:
    cli("ls", "-r", shop)
    index = shop / ".catalog/index/epoch"
    index.mkdir(parents=True)
    (index / "manifest.json").write_text("{}")
    shutil.rmtree(shop / "words/size/v1")
    done = cli("fsck", "-r", shop)
    assert done.code == 1
    assert "manifest.json" in done.out
    assert "words/size/v1" in done.out
    assert "Found 2, listed above. See what `adapterhub fsck --repair` can do." in done.err
    done = cli("fsck", "--repair", "-r", shop, "--json")
    assert done.code == 1
    told = json.loads(done.out)
    assert (len(told["repaired"]), len(told["faults"])) == (1, 1)
    assert not index.exists()
    cli("rm", "words/size", "-y", "-r", shop)
    done = cli("fsck", "-r", shop)
    assert (done.code, done.out) == (0, "")
    assert "2 tasks, no faults" in done.err


class TinyEncoder:
    """Two encoders that hear letters."""

    dimension = 8

    def __init__(self, model: str = "first") -> None:
        self.fingerprint = f"tiny|{model}"

    def encode(self, texts: list[str]) -> np.ndarray:
        found = np.array([[text.count(letter) + 0.1 for letter in "aeioustn"] for text in texts], dtype=np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_reindex_binds_another_encoder_and_vectors_travel(
    cli: Command, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_room, "SentenceEncoder", TinyEncoder)
    cli("export", tmp_path / "t.jsonl", "-r", shop)
    cli("import", "t.jsonl", "--into", "sqlite:///t.db")
    fails(cli("export", "x.jsonl", "--vectors", "x.safetensors", "-r", "sqlite:///t.db"), "adapterhub reindex")
    done = cli("reindex", "-r", "sqlite:///t.db")
    assert (done.code, done.out) == (0, "tiny|first\n")
    assert "3 tasks are heard" in done.err
    told = json.loads(cli("reindex", "--encoder", "second", "-r", "sqlite:///t.db", "--json").out)
    assert told == {"registry": "sqlite:///t.db", "encoder": "tiny|second", "tasks": 3}
    with pytest.raises(Exception, match="adapterhub reindex --encoder"):
        Registry("sqlite:///t.db").heard(TinyEncoder())
    done = cli("export", "x.jsonl", "--vectors", "x.safetensors", "-r", "sqlite:///t.db")
    assert "3 tasks, 3 of them with vectors" in done.err
    assert cli("import", "x.jsonl", "--vectors", "x.safetensors", "--into", "sqlite:///u.db").code == 0
    assert Registry("sqlite:///u.db").catalog.encoder == "tiny|second"


def test_import_looks_at_each_task_only_if_told(
    cli: Command, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[tuple[list[str], float]] = []

    def look(registry: Registry, max_steal: float) -> object:
        return lambda tasks: looked.append(([task.name for task in tasks], max_steal))

    monkeypatch.setattr(bulk, "_look", look)
    (tmp_path / "t.jsonl").write_text(rows(2))
    cli("import", "t.jsonl", "-r", shop)
    assert looked == []
    cli("rm", "g0/t0", "-y", "-r", shop)
    cli("import", "t.jsonl", "-r", shop, "--guard", "--max-steal", "0.5")
    assert looked == [(["g0/t0"], 0.5)]


def test_an_empty_folder_stays_empty(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for command in ("ls", "check", "fsck"):
        assert cli(command, "-r", tmp_path / "empty").code == 0
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("base", ["/nope", "../nope", "a/b/c", "_none", "~/x"])
def test_a_base_that_is_neither_a_folder_nor_an_id_is_refused(cli: Command, shop: Path, base: str) -> None:
    before = files(shop)
    fails(cli("new", "a/b", "-d", "x", "--base", base, "-r", shop), "a folder or a Hub id", base)
    assert files(shop) == before
