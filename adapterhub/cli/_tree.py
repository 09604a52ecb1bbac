"""The tree of a registry: every task of a small one, the groups of a large one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.tree import Tree

if TYPE_CHECKING:  # the rooms behind are heavy: a command loads those that it needs
    from adapterhub.registry import Registry
    from adapterhub.task import Task

__all__ = ["MANY", "group_tree", "task_tree"]

MANY = 200  # lines that one still reads
_WIDE = 50  # groups of one level


def task_tree(registry: Registry, prefix: str = "") -> Tree:
    """The tree of tasks, each with its head and its first metric."""
    root = _root(registry)
    branches: dict[str, Tree] = {"": root}
    for task in registry.tasks(prefix):
        parts = task.name.split("/")
        for depth in range(1, len(parts)):
            group = "/".join(parts[:depth])
            if group not in branches:
                branches[group] = branches["/".join(parts[: depth - 1])].add(f"[bold]{parts[depth - 1]}[/]")
        branches[task.group].add(_leaf(task, parts[-1]))
    return root


def group_tree(registry: Registry, prefix: str, depth: int) -> Tree:
    """The groups of so many levels below a branch, each with the number of its tasks; of a wide level the first 50."""
    root = _root(registry)
    _add_groups(registry, prefix, depth, root.add(f"[bold]{prefix}[/]") if prefix else root)
    return root


def _add_groups(registry: Registry, prefix: str, depth: int, tree: Tree) -> None:
    children = registry.groups(prefix)
    for name, count in children[:_WIDE]:
        label = name.rpartition("/")[2]
        # A single task at the name itself is a leaf; a group shows how many there are.
        leaf = count == 1 and name in registry
        below = tree.add(label if leaf else f"[bold]{label}[/] [dim]{count:,} tasks[/]")
        if depth > 1 and not leaf:
            _add_groups(registry, name, depth - 1, below)
    if len(children) > _WIDE:
        tree.add(f"[dim]… and {len(children) - _WIDE:,} more[/]")


def _root(registry: Registry) -> Tree:
    place = registry.place if "://" in registry.place else registry.root.resolve().name
    return Tree(f"[bold]{escape(place)}[/] [dim]{len(registry):,} tasks[/]", guide_style="dim")


def _leaf(task: Task, name: str) -> str:
    metric = next((f"{key} {value:.3g}" for key, value in task.metrics.items()), "not measured")
    state = task.adapter or "[yellow]no adapter[/]"
    return f"{name} [dim]{task.head} · {state} · {escape(metric)}[/]"
