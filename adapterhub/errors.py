"""Every error that adapterhub raises on purpose: the rule, the value found, the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AdapterHubError",
    "CapacityError",
    "CardError",
    "DataError",
    "HubError",
    "IncompatibleAdapterError",
    "InputError",
    "IntegrityError",
    "MissingExtraError",
    "TaskNotFoundError",
    "did_you_mean",
]


class AdapterHubError(Exception):
    """The root of all errors of this package."""


class CardError(AdapterHubError, ValueError):
    """A card breaks its rules; the message lists every fault, one a line.

    Args:
        faults: One sentence a fault, `path:line: rule, value found, remedy`.
    """

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class TaskNotFoundError(AdapterHubError, LookupError):
    """No task has that name."""


class IncompatibleAdapterError(AdapterHubError, ValueError):
    """An adapter does not fit the base model; the message lists every mismatch.

    Args:
        adapter: Where the adapter was read from.
        base: Id of the base model.
        faults: One line a mismatch.
    """

    def __init__(self, adapter: str, base: str, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        lines = "\n".join(f"  {fault}" for fault in self.faults)
        super().__init__(f"Adapter {adapter} does not fit {base}:\n{lines}")


class CapacityError(AdapterHubError, RuntimeError):
    """A batch needs more memory than was reserved for adapters."""


class IntegrityError(AdapterHubError, OSError):
    """Stored bytes are not the bytes that were registered."""


class HubError(AdapterHubError, OSError):
    """The Hugging Face Hub refused or could not be reached."""


class MissingExtraError(AdapterHubError, ImportError):
    """An optional dependency is not installed.

    Args:
        feature: What needs it.
        extra: The extra of this package that installs it.
    """

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional dependency. Install it with: pip install 'adapterhub[{extra}]'")


class InputError(AdapterHubError, ValueError):
    """An argument or an input text is outside what the call accepts."""


class DataError(AdapterHubError, ValueError):
    """A data file breaks its rules; the message lists the faults with their line numbers."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean `x`?` for the nearest of the known names, or the empty string.

    Args:
        name: The name that was not found.
        known: The names that exist.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean `{near[0]}`?" if near else ""
