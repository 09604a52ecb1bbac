"""The one rule for names, which is also the guard against path traversal."""

from __future__ import annotations

import re
import unicodedata

from adapterhub.errors import CardError

__all__ = ["END", "NAME", "check_name", "name_fault"]

# The end of the text in both Python and ECMAScript; `$` would let a last line break through in Python.
END = r"(?![\s\S])"
# A part such as `v2` is the folder of an adapter's version, so no task is called that.
NAME = rf"^(?!(?:[\s\S]*/)?v[0-9]+(?:/|{END}))(?=[\s\S]{{1,200}}{END})[a-z0-9-]+(?:/[a-z0-9-]+)*{END}"

_NAME = re.compile(NAME)


def name_fault(name: object) -> str | None:
    """What is wrong with a name, as a sentence, or None.

    Args:
        name: The candidate.
    """
    if isinstance(name, str) and _NAME.search(name):
        return None
    text = repr(name[:80]) if isinstance(name, str) else repr(name)[:80]
    shown = text if len(str(name)) <= 80 else f"{text}… ({len(str(name)):,} characters)"
    return (
        "a task's name is lower-case letters, digits and `-`, in parts joined by `/`, at most 200 characters, "
        f"no part like `v1`. Found {shown}. {_remedy(name)}"
    )


def _remedy(name: object) -> str:
    plain = unicodedata.normalize("NFKC", name[:400]).casefold() if isinstance(name, str) else ""
    if _NAME.search(plain):
        return f"No two names differ in case or in the form of a letter only. Write `{plain}`."
    return "Write it like `language/grammar`."


def check_name(name: str) -> str:
    """Return the name if it follows the rule.

    Args:
        name: A task's or a group's name, such as `language/grammar`.

    Returns:
        The same name.

    Raises:
        CardError: If it does not.
    """
    fault = name_fault(name)
    if fault is not None:
        raise CardError([fault])
    return name
