"""The card: what a task is, how its file is read, checked and written.

A missing field comes from the nearest `_group.yaml` upward, beginning in the task's own folder. A group's file holds
defaults for its tasks, and under `description` what the group itself is, which no task inherits. What belongs to one
task alone (`examples`, `adapter`, `sha256`, `metrics`) is not allowed there; a branch with an adapter of its own has a
`task.yaml` beside its `_group.yaml`.
"""

from adapterhub.task._card import Task, fields_faults
from adapterhub.task._fields import Head
from adapterhub.task._names import check_name
from adapterhub.task._read import (
    CARD,
    GROUP,
    RETIRED,
    Scan,
    card_files,
    describe_group,
    read_card,
    read_cards,
    read_group,
    read_tree,
    scan_tree,
)
from adapterhub.task._schema import card_schema
from adapterhub.task._write import write_card

__all__ = [
    "CARD",
    "GROUP",
    "RETIRED",
    "Head",
    "Scan",
    "Task",
    "card_files",
    "card_schema",
    "check_name",
    "describe_group",
    "fields_faults",
    "read_card",
    "read_cards",
    "read_group",
    "read_tree",
    "scan_tree",
    "write_card",
]
