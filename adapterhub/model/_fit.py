"""Does the head that an adapter brings answer what its card promises?"""

from __future__ import annotations

from adapterhub.adapter import HeadTensors
from adapterhub.errors import IncompatibleAdapterError
from adapterhub.task import Task

__all__ = ["check_head"]

_KINDS = {"classification": "sequence", "regression": "sequence", "token-classification": "token"}


def check_head(task: Task, head: HeadTensors | None, source: str) -> None:
    """Hold an adapter's head against its card.

    Args:
        task: The card.
        head: The head of its adapter, or None where the adapter has none.
        source: Where the adapter lies, for messages.

    Raises:
        IncompatibleAdapterError: If the kind of head or the number of its outputs is another than the card's.
    """
    wanted = _KINDS.get(task.head)
    found = head.kind if head is not None else None
    faults = []
    if found != wanted:
        rule = f"a {wanted} head" if wanted else "no head of its own"
        faults.append(f"`head: {task.head}` needs an adapter with {rule}. Found {found or 'none'}. Correct the card.")
    elif head is not None:
        outputs = 1 if task.head == "regression" else len(task.labels)
        if head.weight.shape[0] != outputs:
            faults.append(
                f"the head should have {outputs} outputs, as the card says. Found {head.weight.shape[0]}. "
                "List the labels in the order in which they were trained."
            )
    if faults:
        raise IncompatibleAdapterError(source, f"the card of {task.name}", faults)
