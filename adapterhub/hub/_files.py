"""Which files travel to and from the Hub."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from adapterhub.errors import InputError

__all__ = ["REQUIRED", "allowed", "task_files"]

REQUIRED = ("adapter_config.json", "adapter_model.safetensors")
_SUFFIXES = (".safetensors", ".json", ".yaml")


def allowed(name: str) -> bool:
    """Whether a file of that name may travel: `*.safetensors`, `*.json`, `*.yaml` and `README.md`, nothing hidden."""
    return not name.startswith(".") and (name == "README.md" or name.endswith(_SUFFIXES))


def task_files(folder: Path) -> dict[str, Path]:
    """The files of a task folder by name, ready to be pushed.

    Args:
        folder: A flat folder in PEFT's format.

    Raises:
        InputError: If it is no folder, lacks a required file, or holds anything that does not travel; all at once.
    """
    if not folder.is_dir():
        raise InputError(f"What is pushed is a folder. Found no folder at `{folder}`. Check the path.")
    found = {entry.name: entry for entry in sorted(folder.iterdir())}
    faults = [f"`{name}` is missing" for name in REQUIRED if name not in found]
    faults += [f"`{name}` {fault}" for name, entry in found.items() if (fault := _fault(entry, folder.resolve()))]
    if faults:
        raise InputError(
            f"A folder to push holds {', '.join(REQUIRED)} and otherwise only *.safetensors, *.json, *.yaml and "
            f"README.md. Found in `{folder}`: {'; '.join(faults)}. Push a folder with nothing else in it."
        )
    return found


def _fault(entry: Path, folder: Path) -> str:
    """What is wrong with one entry of the folder, or the empty string."""
    if entry.is_symlink() and entry.resolve().parent != folder:
        return "is a symbolic link that leaves the folder"
    if entry.is_dir():
        return "is a folder"
    if not allowed(entry.name):
        return "is of a kind that never travels"
    if not entry.is_file():
        return "is not a regular file"
    return _unreadable(entry) if entry.suffix == ".safetensors" else ""


def _unreadable(path: Path) -> str:
    # A pickle under another name, or a truncated file, is found by its header.
    try:
        with safe_open(path, framework="np"):
            return ""
    except (SafetensorError, OSError) as error:
        return f"is not a whole safetensors file ({error})"
