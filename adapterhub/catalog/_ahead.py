"""The next item is made while the last one is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

__all__ = ["ahead"]

Item = TypeVar("Item")


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each made in a thread of its own while the one before it is used.

    Args:
        items: What is iterated; by that one thread alone.

    Raises:
        BaseException: What making an item raises, where the item would have come.
    """
    last = object()
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        coming = pool.submit(next, iterator, last)
        while (item := coming.result()) is not last:
            coming = pool.submit(next, iterator, last)
            yield cast("Item", item)
