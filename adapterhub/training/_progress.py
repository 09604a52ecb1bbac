"""The progress bar of a run, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["progress_bar", "say"]


@contextmanager
def progress_bar(shown: bool, name: str, steps: int) -> Iterator[Callable[[int, float], None]]:
    """A bar with steps, loss and time left.

    Args:
        shown: Whether to draw anything.
        name: The task.
        steps: Steps in all.

    Yields:
        A function that takes the number of steps done and the loss.
    """
    if not shown:
        yield lambda *_: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=2) as bar:
        line = bar.add_task(name, total=steps, loss="-")
        yield lambda step, loss: bar.update(line, completed=step, loss=f"{loss:.3f}")


def say(shown: bool, text: str) -> None:
    """One line on standard error, if anything is shown."""
    if shown:
        Console(stderr=True, highlight=False, markup=False).print(text)
