"""What holds of the tables of a SQLite catalogue among themselves, and what makes it hold again."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["LAST", "NEWEST", "RULES", "TAGS", "Rule"]


class Rule(NamedTuple):
    """What holds of the tables among themselves.

    Args:
        text: The rule.
        wrong: Names or numbers of what breaks it.
        repair: What makes it hold again.
        done: What was done, for the report.
    """

    text: str
    wrong: str
    repair: tuple[str, ...]
    done: str


_NO_TASK = "NOT EXISTS (SELECT 1 FROM task WHERE task.id = {0}.id)"
_NO_VECTOR = "NOT EXISTS (SELECT 1 FROM vector WHERE vector.id = {0}.id)"
_LONE = "count >= 2 AND NOT EXISTS (SELECT 1 FROM example WHERE example.id = vector.id)"
_SPARE = "NOT EXISTS (SELECT 1 FROM vector WHERE vector.id = example.id AND count >= 2)"
TAGS = "SELECT DISTINCT value AS tag, state, task.id FROM task, json_each(task.tags) WHERE tags <> ''"
_UNTOLD = (
    "version IS NOT NULL AND NOT EXISTS (SELECT 1 FROM version v WHERE v.id = task.id AND v.version = task.version)"
)
NEWEST = (
    "SELECT max(n) FROM (SELECT max(seq) AS n FROM task UNION SELECT max(heard) FROM task UNION "
    "SELECT max(seq) FROM version UNION SELECT max(seq) FROM tombstone UNION SELECT bound FROM meta)"
)
LAST = "SELECT max(n) FROM (SELECT max(id) AS n FROM task UNION SELECT max(id) FROM tombstone)"
_OTHER = (
    "FROM meta LEFT JOIN binding USING (one) "
    "WHERE meta.encoder IS NOT binding.encoder OR meta.dimension IS NOT binding.dimension"
)
RULES = (
    Rule(
        "The encoder is noted twice, the same",
        f"SELECT coalesce(meta.encoder, binding.encoder) {_OTHER}",
        (
            "UPDATE meta SET encoder = coalesce(encoder, (SELECT encoder FROM binding)), "
            "dimension = coalesce(dimension, (SELECT dimension FROM binding))",
            "INSERT OR REPLACE INTO binding SELECT one, encoder, dimension FROM meta",
        ),
        "one note was taken for both",
    ),
    Rule(
        "Vectors belong to a task",
        f"SELECT id FROM vector WHERE {_NO_TASK.format('vector')}",
        (f"DELETE FROM vector WHERE {_NO_TASK.format('vector')}",),
        "removed",
    ),
    Rule(
        "Vectors have the encoder that they were made with",
        "SELECT id FROM vector WHERE (SELECT encoder IS NULL OR dimension IS NULL FROM meta)",
        ("DELETE FROM vector WHERE (SELECT encoder IS NULL OR dimension IS NULL FROM meta)",),
        "removed; they are encoded again",
    ),
    Rule(
        "Vectors of several examples have the examples",
        f"SELECT id FROM vector WHERE {_LONE}",
        (f"DELETE FROM vector WHERE {_LONE}",),
        "removed; they are encoded again",
    ),
    Rule(
        "Examples belong to vectors",
        f"SELECT id FROM example WHERE {_SPARE}",
        (f"DELETE FROM example WHERE {_SPARE}",),
        "removed",
    ),
    Rule(
        "A task that was heard has vectors",
        f"SELECT name FROM task WHERE heard > 0 AND {_NO_VECTOR.format('task')}",
        (f"UPDATE task SET heard = 0, seq = :seq WHERE heard > 0 AND {_NO_VECTOR.format('task')}",),
        "marked to be encoded again",
    ),
    Rule(
        "A task with vectors was heard",
        f"SELECT name FROM task WHERE heard = 0 AND NOT {_NO_VECTOR.format('task')}",
        (f"UPDATE task SET heard = :seq, seq = :seq WHERE heard = 0 AND NOT {_NO_VECTOR.format('task')}",),
        "marked as heard",
    ),
    Rule(
        "A task's state follows from its adapter",
        "SELECT name FROM task WHERE state NOT IN (0, 1, 2) OR (state < 2 AND state <> (version IS NULL))",
        (
            "UPDATE task SET state = (version IS NULL), seq = :seq "
            "WHERE state NOT IN (0, 1, 2) OR (state < 2 AND state <> (version IS NULL))",
        ),
        "corrected",
    ),
    Rule(
        "Tags are those of the tasks",
        f"SELECT tag FROM (SELECT * FROM (SELECT tag, state, id FROM tag EXCEPT {TAGS}) "
        f"UNION ALL SELECT * FROM ({TAGS} EXCEPT SELECT tag, state, id FROM tag))",
        ("DELETE FROM tag", f"INSERT INTO tag {TAGS}"),
        "written again from the tasks",
    ),
    Rule(
        "A history belongs to a task",
        f"SELECT id FROM version WHERE {_NO_TASK.format('version')}",
        (f"DELETE FROM version WHERE {_NO_TASK.format('version')}",),
        "removed",
    ),
    Rule(
        "A task's adapter is in its history",
        f"SELECT name FROM task WHERE {_UNTOLD}",
        (f"INSERT INTO version SELECT id, version, sha256, seq FROM task WHERE {_UNTOLD}",),
        "added to the history; older versions are lost",
    ),
    Rule(
        "The number of a deleted task is not given again",
        "SELECT id FROM tombstone WHERE id IN (SELECT id FROM task)",
        ("DELETE FROM tombstone WHERE id IN (SELECT id FROM task)",),
        "removed",
    ),
    Rule(
        "The commit counter is at least every commit's number",
        f"SELECT seq FROM meta WHERE seq < ({NEWEST})",
        (f"UPDATE meta SET seq = ({NEWEST})",),
        "raised",
    ),
    Rule(
        "The counter of tasks is at least every task's number",
        f"SELECT last FROM meta WHERE last < ({LAST})",
        (f"UPDATE meta SET last = ({LAST})",),
        "raised",
    ),
)
