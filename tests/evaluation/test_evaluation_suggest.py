"""Topics among texts that no task fitted."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest

from adapterhub.errors import InputError
from adapterhub.evaluation import suggest_tasks
from adapterhub.evaluation._suggest import merged
from adapterhub.registry import bundled_registry


class Planted:
    """A vector by the first word, with noise."""

    fingerprint, dimension = "planted", 16

    def encode(self, texts):
        rows = []
        for text in texts:
            noise = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(16) * 0.1
            place = ("cook", "sail").index(text.split()[0]) if text.split()[0] in ("cook", "sail") else None
            rows.append(noise * (10 if place is None else 1) + (0 if place is None else 3 * np.eye(16)[place]))
        found = np.array(rows)
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


COOK = [f"cook rice number {n}" for n in range(12)]
SAIL = [f"sail boats number {n}" for n in range(8)]


def test_two_planted_topics_are_two_proposals_and_noise_is_none():
    found = suggest_tasks([*COOK, *SAIL, *COOK, "zig", "zag"], Planted(), similarity=0.5)
    assert [(one.task.name, one.texts) for one in found] == [("new/cook-rice", 12), ("new/boats-sail", 8)]
    assert set(found[0].task.examples) == set(COOK)
    assert found[0].share == pytest.approx(12 / 22)
    assert found[0].cohesion > 0.9


def test_too_few_texts_and_bad_arguments():
    assert suggest_tasks(COOK[:4], Planted()) == []
    assert suggest_tasks([], Planted()) == []
    with pytest.raises(InputError, match=r"Found 1 and 0\.25"):
        suggest_tasks(COOK, Planted(), least=1)


def test_merging_equals_a_slow_reference():
    random = np.random.default_rng(0)
    rows = random.standard_normal((25, 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    groups = [[place] for place in range(25)]
    while True:
        pairs = [((rows[a] @ rows[b].T).mean(), i, j)
                 for i, a in enumerate(groups) for j, b in enumerate(groups) if i < j]  # fmt: skip
        best = max(pairs)
        if best[0] < 0.6:
            break
        groups[best[1]] += groups.pop(best[2])
    assert sorted(merged(rows, 0.6)) == sorted(sorted(group) for group in groups)


@pytest.mark.slow
def test_two_bundled_tasks_are_two_proposals_with_the_real_encoder():
    from adapterhub.encoder import SentenceEncoder

    texts = []
    for task in ("reasoning/logic", "language/sentiment"):
        lines = (bundled_registry() / task / "eval.jsonl").read_text(encoding="utf-8").splitlines()[:30]
        texts += [(task, row.get("input") or row["text"]) for row in map(json.loads, lines)]
    found = suggest_tasks([text for _, text in texts], SentenceEncoder())
    assert len(found) == 2
    of = {text: task for task, text in texts}
    assert [len({of[text] for text in one.task.examples}) for one in found] == [1, 1]
