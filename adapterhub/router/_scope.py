"""Which tasks a call is about, asked of the catalogue by number."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from difflib import get_close_matches

from adapterhub.catalog import Catalog, Ids, Scope
from adapterhub.errors import CardError, InputError, TaskNotFoundError
from adapterhub.task import check_name

__all__ = ["Scopes", "scope_of"]

_REMEMBERED = 8
_COMPARED = 2000  # names of one level that a misspelt one is held against


def scope_of(under: str, tags: Sequence[str], base_model: str | None) -> Scope:
    """The scope that a caller means.

    Args:
        under: A task or a group, with or without a slash at its end.
        tags: Tags that a task must all have.
        base_model: The base model of a task's card, or None for any.

    Raises:
        InputError: If the tags are one string.
    """
    if isinstance(tags, str):
        raise InputError(f"`tags` is a list of tags. Found the text {tags!r}. Put it into a list.")
    return Scope(under=under.rstrip("/"), tags=tuple(sorted(set(tags))), base_model=base_model)


class Scopes:
    """The ids of the latest scopes, each for one state of the catalogue. Safe to share between threads."""

    def __init__(self) -> None:
        self._known: OrderedDict[Scope, tuple[int, Ids]] = OrderedDict()
        self._lock = threading.Lock()

    def ids(self, catalog: Catalog, scope: Scope) -> Ids | None:
        """Numbers of the tasks of a scope, ascending; None stands for all routable ones.

        Args:
            catalog: The catalogue.
            scope: The scope.

        Raises:
            TaskNotFoundError: If its branch does not exist; the message names the nearest one.
        """
        if scope.everything:
            return None
        seq = catalog.seq
        with self._lock:
            known = self._known.get(scope)
        if known is not None and known[0] == seq:
            return known[1]
        if scope.under and not _exists(catalog, scope.under):
            near = _nearest(catalog, scope.under)
            raise TaskNotFoundError(f"No task or group '{scope.under}' in the registry.{near} See `adapterhub ls`.")
        ids = catalog.ids(scope)
        with self._lock:
            self._known[scope] = seq, ids
            self._known.move_to_end(scope)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return ids


def _exists(catalog: Catalog, under: str) -> bool:
    try:
        return bool(catalog.names(check_name(under), limit=1))
    except CardError:  # no name at all, so no branch either
        return False


def _nearest(catalog: Catalog, wanted: str) -> str:
    """The nearest branch, looked for along the path: at a million tasks, only the levels on the way are listed."""
    found = ""
    for part in wanted.split("/"):
        above = f"{found}/" if found else ""
        level = [name.removeprefix(above) for name, _ in catalog.children(found)]
        if part not in level:
            if len(level) > _COMPARED:
                level = [name for name in level if name[:1] == part[:1]][:_COMPARED]
            near = get_close_matches(part, level, n=1)
            if not near:
                return ""
            part = near[0]  # noqa: PLW2901 - from here on the way goes below the nearest one
        found = f"{above}{part}"
    return f" Did you mean `{found}`?"
