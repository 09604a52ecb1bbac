"""Puts the bundled registry into the wheel, without the catalogue that is derived from it."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class RegistryHook(BuildHookInterface[Any]):
    """`registry/…` becomes `adapterhub/_registry/…`; an editable installation reads the checkout's own."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name every file of the registry that is not derived."""
        if version == "editable":
            return
        root = Path(self.root)
        for path in sorted((root / "registry").rglob("*")):
            if path.is_file() and ".catalog" not in path.parts:
                build_data["force_include"][str(path)] = f"adapterhub/_registry/{path.relative_to(root / 'registry')}"
