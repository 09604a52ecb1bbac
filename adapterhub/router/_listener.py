"""Keeps an epoch with its rows, and gives each call its hearing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from adapterhub.catalog import Scope
from adapterhub.encoder import Encoder
from adapterhub.errors import InputError
from adapterhub.router._background import Background
from adapterhub.router._epoch import Epoch
from adapterhub.router._fit import fit_own
from adapterhub.router._hearing import Era, Hearing
from adapterhub.router._rows import TaskRows
from adapterhub.router._scope import Scopes
from adapterhub.router._types import TaskSource

__all__ = ["Listener"]

Answer = TypeVar("Answer")

TRIES = 5  # of a call during which other processes delete tasks


class Listener:
    """A registry as heard through one encoder. Safe to call from several threads.

    Args:
        registry: Where the tasks are.
        encoder: Text to vector.
        background: Statistics for this encoder; by default those of the package, if they are for it.

    Raises:
        InputError: If the background belongs to another encoder.
    """

    def __init__(self, registry: TaskSource, encoder: Encoder, background: Background | None) -> None:
        self._registry, self._encoder = registry, encoder
        self._background = _background_for(encoder, background)
        self._scopes = Scopes()
        self.era = self._begin(own=False)

    def ask(self, scope: Scope, question: Callable[[Hearing], Answer]) -> Answer:
        """Ask of the registry as it is now; again where a task was deleted between its score and its name.

        Args:
            scope: Which tasks it is about.
            question: The question.

        Raises:
            TaskNotFoundError: If the scope's branch does not exist.
        """
        for left in reversed(range(TRIES)):
            catalog = self._registry.heard(self._encoder)
            era = self.era
            era.rows.synchronise()
            seq = catalog.seq
            ids = self._scopes.ids(catalog, scope)
            try:
                return question(Hearing(catalog, self._encoder.fingerprint, era, scope, ids))
            except InputError:
                if not left or catalog.seq == seq:
                    raise
        raise AssertionError("the last try returns or raises")

    def refit(self) -> None:
        """Begin a new epoch with the registry's own examples; calls go on under the old one until it is there."""
        self.era = self._begin(own=True)

    def _begin(self, *, own: bool) -> Era:
        """Make an epoch, then its rows."""
        catalog = self._registry.heard(self._encoder)
        if self._background is None or own:
            fitted = fit_own(catalog, self._encoder.fingerprint, self._encoder.dimension, self._background)
            epoch, calibration = fitted
        else:
            epoch, calibration = Epoch.fit(self._background.sums), self._background.calibration
        rows = TaskRows(epoch, catalog, self._encoder.fingerprint, self._registry.index_folder)
        rows.synchronise()
        return Era(epoch, calibration, rows)


def _background_for(encoder: Encoder, given: Background | None) -> Background | None:
    background = given if given is not None else Background.shipped()
    if background.serves(encoder.fingerprint):
        return background
    if given is None:
        return None
    raise InputError(
        f"Background statistics belong to one encoder. Found those of {given.fingerprint} for {encoder.fingerprint}. "
        "Make them for this encoder, or leave them out."
    )
