"""The index of many rows: bits of them are scanned, the likeliest rows are read from the disk and scored exactly."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from adapterhub.catalog._builder import Typical, build
from adapterhub.catalog._generation import Generation, Manifest
from adapterhub.catalog._layered import LayeredIndex
from adapterhub.catalog._records import Ids
from adapterhub.catalog._scores import Rows
from adapterhub.errors import IntegrityError

__all__ = ["BitIndex"]

_OPENINGS = 5


class BitIndex(LayeredIndex[Generation]):
    """A `VectorIndex` of a generation on disk and of what came since, in memory.

    A search looks at the signs of all rows and at more bits of the best, which are in memory, reads the likeliest rows
    from the disk and scores them exactly; rows added since the generation are all scored. Damage of a file is found
    when the index is opened, and damage of a row when it is read.

    Args:
        generation: The generation.
    """

    def __init__(self, generation: Generation) -> None:
        super().__init__(generation, generation.manifest.width)

    @property
    def manifest(self) -> Manifest:
        """What the generation is."""
        return self._state.stored.manifest

    @classmethod
    def open(cls, folder: Path) -> BitIndex:
        """The current generation of a folder.

        Args:
            folder: Of the index.

        Raises:
            IntegrityError: If there is none, or one of its files is missing or damaged.
        """
        for turn in range(_OPENINGS):
            manifest = Manifest.read(folder)
            try:
                return cls(Generation(folder, manifest))
            except IntegrityError:
                # It may have been replaced, and cleared away, between the two.
                if turn + 1 == _OPENINGS or Manifest.read(folder).name == manifest.name:
                    raise
        raise AssertionError("unreachable")

    @classmethod
    def build(
        cls,
        folder: Path,
        blocks: Iterable[tuple[Ids, Rows]],
        sample: Rows,
        typical: Typical,
        *,
        seq: int = 0,
        fingerprint: str = "",
    ) -> BitIndex:
        """Write a generation and open it. To be called while `building` in that folder.

        Args:
            folder: Of the index.
            blocks: Keys and rows, ascending by key over all blocks.
            sample: Some of the rows, or rows like them.
            typical: What queries are like; it decides what is found fast, never a score.
            seq: Number of a commit that all rows are at least as new as.
            fingerprint: Of whatever the rows are made by.

        Raises:
            InputError: If the keys do not ascend.
            OSError: If it cannot be written; the current generation stays.
        """
        return cls(build(folder, blocks, sample, typical, seq=seq, fingerprint=fingerprint))
