"""The JSON Schema of a card, written from the same table as the checks."""

from __future__ import annotations

from adapterhub.task._fields import BIO_TAG, FIELDS, HEADS, Field, applies

__all__ = ["card_schema"]

_NUL = {"pattern": r"\u0000"}


def card_schema(*, partial: bool = False) -> dict[str, object]:
    """The JSON Schema (draft 2020-12) of a card.

    Args:
        partial: False for a complete card, after inheritance. True for what one file may hold, which is what an
            editor checks: nothing is required, and fields are held against the head only where the file sets it.

    Returns:
        A schema that allows no other properties.
    """
    schema: dict[str, object] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A task's card",
        "type": "object",
        "properties": {field.name: _property(field) for field in FIELDS.values()},
        "additionalProperties": False,
        "allOf": [_head_rule(head, partial=partial) for head in HEADS],
    }
    if not partial:
        schema["required"] = ["description"]
        schema["dependentRequired"] = {"sha256": ["adapter"]}
    return schema


def _property(field: Field) -> dict[str, object]:
    text: dict[str, object] = {"type": "string"}
    if field.choices:
        text["enum"] = list(field.choices)
    else:
        text |= {"maxLength": field.longest, "not": _NUL} | ({"pattern": field.pattern} if field.pattern else {})
    texts: dict[str, object] = {"type": "array", "items": text, "maxItems": field.most}
    number: dict[str, object] = {"type": field.kind} | ({} if field.minimum is None else {"minimum": field.minimum})
    shapes: dict[str, dict[str, object]] = {
        "text": text,
        "texts": texts | ({"uniqueItems": True} if field.unique else {}),
        "number": number,
        "integer": number,
        "numbers": {
            "type": "object",
            "additionalProperties": {"type": "number"},
            "propertyNames": {"not": _NUL},
            "maxProperties": field.most,
        },
    }
    shape: dict[str, object] = {"description": f"{field.name} should be {field.rule}", **shapes[field.kind]}
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    return shape if default is None else {**shape, "default": default}


def _head_rule(head: str, *, partial: bool) -> dict[str, object]:
    condition: dict[str, object] = {"properties": {"head": {"const": head}}}
    if partial or head != FIELDS["head"].default:
        condition["required"] = ["head"]
    # An empty list contradicts nothing: `labels: []` beside `head: generation` is the card's own example.
    allowed: dict[str, object] = {
        name: {"maxItems": 0} if field.kind == "texts" else False
        for name, field in FIELDS.items()
        if not applies(name, head)
    }
    rule: dict[str, object] = {"properties": allowed}
    if applies("labels", head):
        rule = {"properties": {**allowed, "labels": _labels(head)}}
        if not partial:
            rule["required"] = ["labels"]
    return {"if": condition, "then": rule}


def _labels(head: str) -> dict[str, object]:
    if head == "token-classification":
        return {"minItems": 2, "items": {"pattern": BIO_TAG}, "contains": {"const": "O"}}
    return {"minItems": 2}
