"""How the command line starts, ends and speaks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli_world import Command

from adapterhub import __version__

pytest_plugins = ("cli_fixtures",)

ENTRY = "from adapterhub.cli import main; main()"
COMMANDS = (
    "demo", "run", "route", "eval", "ls", "info", "new", "check", "add", "retire", "restore", "rm", "import", "export",
    "reindex", "fsck", "train", "meta-init", "prune", "affinity", "cluster", "doctor", "report", "stats", "suggest",
    "convert", "mix", "push", "pull",
)  # fmt: skip


def test_no_arguments_print_the_commands(cli: Command) -> None:
    said = cli()
    assert all(command in said.out + said.err for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help(cli: Command, command: str) -> None:
    done = cli(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"adapterhub {command}" in done.out


def test_version(cli: Command) -> None:
    assert cli("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(("typed", "near"), [(("lss",), "ls"), (("chekc",), "check"), (("ls", "--jsn"), "--json")])
def test_a_misspelt_command_or_option_names_the_near_one(cli: Command, typed: tuple[str, ...], near: str) -> None:
    done = cli(*typed)
    assert (done.code, done.out) == (2, "")
    assert near in done.err
    assert "Traceback" not in done.err


def test_the_entry_point_ends_with_the_status_and_one_block_on_stderr(world: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENTRY, "info", "words/moood", "-r", str(world)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: No task 'words/moood'")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("check", "--schema"), ("--version",)])
def test_a_reader_that_goes_away_is_no_fault(arguments: tuple[str, ...]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENTRY, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=120) == 1
    assert said == ""


def test_a_lister_loads_no_model(world: Path) -> None:
    code = f"import sys; sys.argv = ['adapterhub', 'ls', '-r', {str(world)!r}]\nimport atexit\n"
    code += "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n" + ENTRY
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "False\n"
