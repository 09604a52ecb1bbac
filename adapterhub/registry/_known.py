"""What a registry holds already, so that an import knows what is new, the same, or another."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adapterhub.catalog import Catalog
from adapterhub.registry._history import ARRIVING
from adapterhub.registry._lines import digest_of, key_of
from adapterhub.registry._rows import all_rows

__all__ = ["Keys", "Known", "State"]

State = Literal["new", "same", "other"]
Keys = NDArray[np.uint64]


class Known:
    """The tasks of a catalogue as two numbers each: 16 bytes a task, however long its card.

    Args:
        catalog: The catalogue, up to date.
        lines: About how many names will be looked up; for a few of them no table is made.
    """

    def __init__(self, catalog: Catalog, lines: int) -> None:
        self._catalog = catalog
        self._names = self._digests = np.empty(0, dtype=np.uint64)
        self._whole = catalog.seq == 0 or catalog.count() <= 20 * lines
        if self._whole and catalog.seq:
            rows = (
                (key_of(record.name), digest_of(record)) for record in all_rows(catalog) if record.source != ARRIVING
            )
            table = np.fromiter(rows, dtype=[("name", np.uint64), ("digest", np.uint64)])
            table.sort(order="name")
            self._names, self._digests = table["name"].copy(), table["digest"].copy()

    def state(self, name: str, digest: int) -> State:
        """Whether a task of that name is there, and says the same.

        Args:
            name: The task's name.
            digest: `digest_of` its row.
        """
        found = self._digest(name)
        return "new" if found is None else "same" if found == digest else "other"

    def _digest(self, name: str) -> int | None:
        if not self._whole:
            record = self._catalog.get(name)
            return None if record is None or record.source == ARRIVING else digest_of(record)
        place = int(np.searchsorted(self._names, np.uint64(key_of(name))))
        there = place < len(self._names) and int(self._names[place]) == key_of(name)
        return int(self._digests[place]) if there else None
