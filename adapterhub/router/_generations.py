"""The index of one epoch's rows in a folder: found, checked against the catalogue, built, and built anew."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from adapterhub.catalog import BitIndex, ExactIndex, Ids, Manifest, Rows, building
from adapterhub.errors import IntegrityError
from adapterhub.router._source import PER_TASK, RowSource, join

__all__ = ["Generations"]

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_COMPARED = 64  # rows that are made anew when an index is opened
_SAMPLE = 20_000  # rows that the signature is fitted to
_UNUSED = 7 * 86400.0  # seconds after which the index of an epoch that nobody opened is cleared away
_PATIENCE = 3600.0  # seconds that another process may take to build


class Generations:
    """Generations of an index in a folder of their own, shared by all processes with the same encoder and epoch.

    Args:
        folder: Where indexes may be kept.
        source: Where the rows come from.
        token: Which catalogue that is; an index knows its tasks by the numbers of this one.
    """

    def __init__(self, folder: Path, source: RowSource, token: str) -> None:
        self._source = source
        self.fingerprint = f"{source.encoder}|{source.epoch.fingerprint}|{token}"
        self._parent = folder
        self.folder = folder / hashlib.blake2b(self.fingerprint.encode(), digest_size=8).hexdigest()

    def current(self) -> BitIndex | None:
        """The index that is there, if it is whole and of this catalogue; else the reason is logged."""
        if not self.folder.exists():
            return None
        try:
            index = BitIndex.open(self.folder)
        except IntegrityError as error:
            if (self.folder / MANIFEST).exists():
                logger.warning("%s", error)
            return None
        if not self._fits(index):
            logger.warning(
                "An index has the rows of its catalogue. Found others in %s. It is built again from the catalogue.",
                self.folder,
            )
            return None
        with suppress(OSError):
            os.utime(self.folder)
        return index

    def replaced(self, index: BitIndex) -> bool:
        """Whether another generation than that of an index is the current one.

        Args:
            index: The index.
        """
        return self._name() not in {None, index.manifest.name}

    def build(self, ids: Ids) -> BitIndex:
        """Build the index from the catalogue; where another process builds already, wait for its index.

        Args:
            ids: Numbers of its tasks, to draw a sample from.

        Raises:
            OSError: If it cannot be written, or another process builds for an hour.
        """
        seen = self._name()
        with building(self.folder, _PATIENCE):
            if self._name() != seen and (found := self.current()) is not None:
                return found
            seq = self._source.seq()  # before the rows: what came since is looked at again
            return self._write(self._source.blocks(), self._source.some(ids, _SAMPLE), seq)

    def rebuild(self, index: BitIndex | ExactIndex, seq: int) -> BitIndex | None:
        """Write the rows of an index as a new generation.

        Args:
            index: The index.
            seq: Number of a commit that its rows are at least as new as.

        Returns:
            The new index, or that of another process that was faster; None while another process builds.

        Raises:
            OSError: If it cannot be written, or a row of the index is damaged.
        """
        seen = index.manifest.name if isinstance(index, BitIndex) else None
        try:
            with building(self.folder, 0):
                if self._name() != seen and (found := self.current()) is not None:
                    return found
                return self._write(index.blocks(), index.sample(_SAMPLE)[1], seq)
        except TimeoutError:
            return None

    def _write(self, blocks: Iterable[tuple[Ids, Rows]], sample: Rows, seq: int) -> BitIndex:
        index = BitIndex.build(self.folder, blocks, sample, self._source.typical, seq=seq, fingerprint=self.fingerprint)
        self._clear_away()
        return index

    def _name(self) -> str | None:
        try:
            return Manifest.read(self.folder).name
        except IntegrityError:
            return None

    def _fits(self, index: BitIndex) -> bool:
        """Whether rows made anew from the catalogue are those of the index, but for what changed since."""
        manifest, source = index.manifest, self._source
        if manifest.fingerprint != self.fingerprint or manifest.seq > source.seq():
            return False
        changes = source.catalog.vector_changes(source.encoder, manifest.seq)
        keys, rows = index.sample(_COMPARED)
        ids = np.setdiff1d(keys // PER_TASK, np.concatenate([changes.present, changes.gone]))
        held = np.isin(keys // PER_TASK, ids)
        keys, rows = keys[held], rows.take(np.flatnonzero(held))
        found, made = join(source.blocks(ids), manifest.width)
        places = np.minimum(np.searchsorted(found, keys), max(len(found) - 1, 0))
        if len(keys) and (not len(found) or not np.array_equal(found[places], keys)):
            return False
        made = made.take(places)
        return (
            np.array_equal(made.linear, rows.linear)
            and np.array_equal(made.group, rows.group)
            and np.array_equal(made.offset, rows.offset)
        )

    def _clear_away(self) -> None:
        """Remove the indexes of epochs that no process has opened for long."""
        for folder in self._parent.iterdir():
            with suppress(OSError):
                unused = abs(time.time() - folder.stat().st_mtime) > _UNUSED
                if unused and folder != self.folder and (folder / MANIFEST).exists():
                    shutil.rmtree(folder)
