"""What must hold between the fields of a complete card, so that contradictory heads cannot be expressed."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from adapterhub.task._fields import BIO_TAG, FIELDS, HEADS, Fault, applies

__all__ = ["card_faults"]


def card_faults(fields: Mapping[str, object], faulty: Collection[str] = ()) -> list[Fault]:
    """Check the fields of a complete card against one another.

    Args:
        fields: The fields by name, inherited ones included; an absent one has its default.
        faulty: Fields that `field_faults` has already found wrong: nothing more is said about them.
    """
    faults: list[Fault] = []
    if "description" not in fields:
        faults.append(Fault("description", None, "`description` is missing. Say in one sentence what the task does."))
    if "sha256" in fields and "adapter" not in fields:
        faults.append(
            Fault("sha256", None, "`sha256` is the hash of an adapter. Found no `adapter`. Add or remove one.")
        )
    head = str(fields.get("head", FIELDS["head"].default))
    if "head" in faulty or head not in HEADS:
        return faults
    for name in fields:
        if name in FIELDS and name not in faulty and not applies(name, head) and fields[name] not in ([], ()):
            heads = " or ".join(f"`head: {other}`" for other in FIELDS[name].heads)
            faults.append(Fault(name, None, f"`{name}` is only for {heads}. Found `head: {head}`. Remove one of them."))
    labels = fields.get("labels", ())
    if "labels" not in faulty and applies("labels", head) and isinstance(labels, Sequence):
        faults += _label_faults(head, labels)
    return faults


def _label_faults(head: str, labels: Sequence[str]) -> list[Fault]:
    faults = []
    if len(labels) < 2:
        text = f"`labels` should be at least two with `head: {head}`. Found {len(labels)}. List every label."
        faults.append(Fault("labels", None, text))
    if head != "token-classification":
        return faults
    if len(labels) >= 2 and "O" not in labels:
        faults.append(
            Fault("labels", None, "`labels` of tokens should hold `O`, the label of all other tokens. Add it.")
        )
    for place, label in enumerate(labels):
        if not re.search(BIO_TAG, label):
            text = f"`labels` item {place + 1} should be `O`, `B-…` or `I-…`. Found {label!r}. Write it as a BIO tag."
            faults.append(Fault("labels", place, text))
    return faults
