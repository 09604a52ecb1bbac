"""The table of a card's fields: parsing, checking, writing and the JSON Schema all come from it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from adapterhub.errors import did_you_mean
from adapterhub.task._names import END, NAME

__all__ = ["BIO_TAG", "FIELDS", "HEADS", "Fault", "Field", "Head", "applies", "field_faults"]

Head = Literal["generation", "classification", "token-classification", "regression"]
HEADS: tuple[str, ...] = get_args(Head)

_ANY = r""
_SOME = r"\S"
_LINE = rf"^[^\r\n]*{END}"
_ONE_TEXT = rf"^(?:(?!\{{text\}})[\s\S])*\{{text\}}(?:(?!\{{text\}})[\s\S])*{END}"
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_ADAPTER = rf"^(?:v[1-9][0-9]*|hf://{_PART}/{_PART}@[0-9a-f]{{40}}(?:/{_PART})*){END}"
_SHA256 = rf"^[0-9a-f]{{64}}{END}"
BIO_TAG = rf"^(?:O|[BI]-\S+){END}"


class Fault(NamedTuple):
    """One broken rule: the field, the item or key within it, and the sentence."""

    field: str
    item: int | str | None
    text: str


@dataclass(frozen=True)
class Field:
    """One field of a card.

    Args:
        name: Its key in the file and in `Task`.
        kind: `text`, `texts` (a list), `number`, `integer`, or `numbers` (names with numbers).
        default: Its value where no file sets it.
        rule: What the value is, read after "should be".
        pattern: Regular expression of a text or of each text of a list; both Python and ECMAScript read it alike.
        choices: The only texts allowed, or empty.
        minimum: Smallest number allowed, or None.
        unique: Whether a list may not repeat an item.
        longest: Most characters of a text, and of each text of a list.
        most: Most items of a list, most numbers by name.
        heads: The heads with which the field may be set.
        inherited: Whether a group's file may set it as a default for its tasks.
        flow: Whether a list is written on one line.
    """

    name: str
    kind: Literal["text", "texts", "number", "integer", "numbers"]
    default: object
    rule: str
    pattern: str = _ANY
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    unique: bool = False
    longest: int = 10_000
    most: int = 10_000
    heads: tuple[str, ...] = HEADS
    inherited: bool = True
    flow: bool = True


FIELDS: Mapping[str, Field] = {
    field.name: field
    for field in (
        Field("description", "text", "", "a text that says what the task does", _SOME, inherited=False),
        Field("examples", "texts", (), "a list of input texts", _SOME, inherited=False, flow=False),
        Field("prompt", "text", "{text}", "a text with `{text}` exactly once", _ONE_TEXT),
        Field("output", "text", "", "one line that says what the answer looks like", _LINE),
        Field("head", "text", "generation", f"one of {', '.join(HEADS)}", choices=HEADS),
        Field(
            "labels",
            "texts",
            (),
            "a list of different texts",
            _SOME,
            unique=True,
            heads=("classification", "token-classification"),
        ),
        Field("max_new_tokens", "integer", 32, "a whole number of at least 1", minimum=1, heads=("generation",)),
        Field("base_model", "text", "", "the id or the path of a model, on one line", _LINE),
        Field(
            "adapter",
            "text",
            None,
            "a version such as `v1` or `hf://org/repo@<40 hex digits of a commit>/path`",
            _ADAPTER,
            inherited=False,
        ),
        Field("sha256", "text", None, "64 lower-case hex digits", _SHA256, inherited=False),
        Field("stack", "texts", (), "a list of different task names", NAME, unique=True),
        Field("loss_weight", "number", 1.0, "a finite number of at least 0", minimum=0),
        Field("metrics", "numbers", {}, "measured numbers by name, such as {exact_match: 0.93}", inherited=False),
        Field("datasets", "texts", (), "a list of data sets' names", _SOME),
        Field("license", "text", "", "a licence's identifier, on one line", _LINE),
        Field("tags", "texts", (), "a list of different texts", _SOME, unique=True),
    )
}


def applies(field: str, head: str) -> bool:
    """Whether a field may be set beside a head.

    Args:
        field: Name of a field.
        head: Name of a head.
    """
    return head in FIELDS[field].heads


def field_faults(fields: Mapping[str, object]) -> list[Fault]:
    """Check each field by itself: known, of its kind, within its rule.

    Args:
        fields: The fields by name.
    """
    faults: list[Fault] = []
    for name, value in fields.items():
        field = FIELDS.get(name)
        if field is None:
            faults.append(Fault(name, None, f"unknown field `{name}`.{_nearest(name)}"))
        else:
            faults += (Fault(name, item, text) for item, text in _CHECKS[field.kind](field, value))
    return faults


_Found = list[tuple[int | str | None, str]]


def _nearest(name: str) -> str:
    return did_you_mean(name, FIELDS) or f" The fields are {', '.join(FIELDS)}."


def _show(value: object) -> str:
    if value is None:
        return "nothing"
    kinds = {bool: " (yes/no)", int: " (a number)", float: " (a number)", list: " (a list)", dict: " (a mapping)"}
    text = str(value).lower() if isinstance(value, bool) else repr(value[:100] if isinstance(value, str) else value)
    return (text if len(text) <= 80 else f"{text[:80]}…") + kinds.get(type(value), "")


def _wrong(field: Field, value: object, remedy: str, item: str = "") -> str:
    return f"`{field.name}`{item} should be {field.rule}. Found {_show(value)}. {remedy}"


def _text(field: Field, value: object) -> _Found:
    if not isinstance(value, str):
        remedy = "Leave the line out." if value is None else "Put it in quotes if it is meant as text."
        return [(None, _wrong(field, value, remedy))]
    fault = _text_remedy(field, value)
    return [] if fault is None else [(None, _wrong(field, value, fault))]


def _text_remedy(field: Field, value: str) -> str | None:
    if len(value) > field.longest:
        return f"It has {len(value):,} characters, and {field.longest:,} are the most. Shorten it."
    if not _is_unicode(value):
        return "Remove the characters that are not Unicode."
    if "\0" in value:
        return "Remove the NUL characters, which no database stores."
    if field.choices and value not in field.choices:
        return did_you_mean(value, field.choices).strip() or "Take one of these."
    if field.pattern and not re.search(field.pattern, value):
        return "Correct it."
    return None


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(field: Field, value: object) -> _Found:
    if not isinstance(value, list | tuple):
        return [(None, _wrong(field, value, "Write a list, such as [first, second]."))]
    if len(value) > field.most:
        return [(None, _wrong(field, value[:3], f"It has {len(value):,} items, and {field.most:,} are the most."))]
    found: _Found = []
    seen: set[str] = set()
    for place, item in enumerate(value):
        where = f" item {place + 1}"
        if not isinstance(item, str):
            found.append((place, _wrong(field, item, "Put it in quotes if it is meant as text.", where)))
            continue
        remedy = _text_remedy(field, item)
        if remedy is None and field.unique and item in seen:
            remedy = "Remove the repeated item."
        if remedy is not None:
            found.append((place, _wrong(field, item, remedy, where)))
        seen.add(item)
    return found


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    # An integer too long for a float would break every later sum.
    return isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < 1000


def _number(field: Field, value: object) -> _Found:
    good = isinstance(value, int | float) and _is_number(value) and (field.minimum is None or value >= field.minimum)
    return [] if good else [(None, _wrong(field, value, "Write a number, such as 1.0."))]


def _integer(field: Field, value: object) -> _Found:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    good = whole and not _number(field, value)
    return [] if good else [(None, _wrong(field, value, "Write a whole number, such as 32."))]


def _numbers(field: Field, value: object) -> _Found:
    if not isinstance(value, Mapping):
        return [(None, _wrong(field, value, "Write names with numbers."))]
    if len(value) > field.most:
        return [(None, f"`{field.name}` has at most {field.most:,} numbers. Found {len(value):,}. Leave some out.")]
    return [
        (str(key), f"`{field.name}` {key} should be a finite number. Found {_show(number)}. Write the measured value.")
        for key, number in value.items()
        if not _is_number(number) or not isinstance(key, str) or "\0" in key or not _is_unicode(key)
    ]


_CHECKS: Mapping[str, Callable[[Field, object], _Found]] = {
    "text": _text,
    "texts": _texts,
    "number": _number,
    "integer": _integer,
    "numbers": _numbers,
}
