from __future__ import annotations

import numpy as np
import pytest
from router_world import DIMENSION, vectors
from test_router import NAMES, Hub

from adapterhub.errors import InputError, TaskNotFoundError
from adapterhub.route import Route


@pytest.fixture
def hub():
    return Hub()


def test_a_subtree_is_searched_alone(hub):
    router = hub.router()
    everywhere, inside = (
        router.decide(["language/grammar 0"]),
        router.decide(["language/grammar 0"], under="reasoning/"),
    )
    assert everywhere[0].route == Route.to("language/grammar")
    assert {c.task for c in inside[0].candidates} == {"reasoning/math/sums", "reasoning/math/words"}
    assert {c.task: c.score for c in inside[0].candidates}.items() <= {
        c.task: c.score for c in everywhere[0].candidates
    }.items()
    assert [c.task for c in router.decide(["far"], under="knowledge/world")[0].candidates] == ["knowledge/world"]


def test_tags_and_base_models_are_filters_too(hub):
    tasks = hub.registry.tasks
    hub.registry.add(tasks["language/grammar"], tags=("fast", "english"), base_model="acme/one")
    hub.registry.add(tasks["knowledge/world"], tags=("fast",), base_model="acme/two")
    router = hub.router()

    def found(**scope):
        return {c.task for c in router.decide(["far"], **scope)[0].candidates}

    assert found(tags=["fast"]) == {"language/grammar", "knowledge/world"}
    assert found(tags=["english", "fast"]) == {"language/grammar"}
    assert found(tags=["fast"], base_model="acme/two") == {"knowledge/world"}
    assert found(tags=["fast"], under="language") == {"language/grammar"}
    assert found(base_model="acme/three") == set()
    assert found() == set(NAMES)
    with pytest.raises(InputError, match="list of tags"):
        router.route(["far"], tags="fast")


def test_every_call_takes_a_scope(hub):
    router, text = hub.router(), "language/grammar 0"
    decisions = [
        router.decide_conversation([text], under="reasoning"),
        router.decide_parts(text, under="reasoning").parts[0].decision,
        router.explain(text, under="reasoning").decision,
    ]
    for decision in decisions:
        assert {c.task for c in decision.candidates} == {"reasoning/math/sums", "reasoning/math/words"}


@pytest.mark.parametrize(
    ("under", "near"),
    [
        ("language/gramar", "language/grammar"),
        ("langage/gramar", "language/grammar"),
        ("lang", "language"),
        ("Language", "language"),
        ("reasoning/maths/sums", "reasoning/math/sums"),
        ("../language", None),
        ("language/\0", None),
        ("qqqq/qqqq", None),
        ("language/grammar/below", None),
    ],
)
def test_an_unknown_subtree_is_an_error_with_a_near_name(hub, under, near):
    with pytest.raises(TaskNotFoundError) as caught:
        hub.router().route(["far"], under=under)
    assert repr(under).strip("'") in str(caught.value) or under in str(caught.value)
    assert (f"Did you mean `{near}`?" in str(caught.value)) == (near is not None)


def test_a_misspelt_branch_among_very_many_is_compared_with_few(hub, monkeypatch):
    compared = []

    def matches(word, possibilities, n):
        compared.append(len(possibilities))
        return ["task-77"]

    monkeypatch.setattr("adapterhub.router._scope.get_close_matches", matches)
    monkeypatch.setattr("adapterhub.router._scope._COMPARED", 50)
    for number in range(100):
        hub.registry.add(vectors(f"many/task-{number}", np.ones((1, DIMENSION))))
        hub.registry.add(vectors(f"many/else-{number}", np.ones((1, DIMENSION))))
    hub.registry.catalog.asked.clear()
    with pytest.raises(TaskNotFoundError, match="`many/task-77`"):
        hub.router().route(["far"], under="many/tsk-77")
    assert compared == [50]
    assert [q for q in hub.registry.catalog.asked if q.startswith("children")] == ["children ", "children many"]


def test_a_subtree_without_adapters_answers_none(hub):
    hub.registry.add(hub.new_task("empty/task"), adapter=False)
    assert hub.router().decide(["far"], under="empty")[0].kind == "none"


def test_the_numbers_of_a_scope_are_remembered_until_something_changes(hub):
    router = hub.router()
    asked = hub.registry.catalog.asked
    for _ in range(3):
        router.route(["far"], under="language")
    assert asked.count("ids") == 1
    hub.registry.add(hub.new_task("language/new"))
    assert "language/new" in {c.task for c in router.decide(["far"], under="language")[0].candidates}
    assert asked.count("ids") == 2
    for number in range(20):
        router.route(["far"], tags=[f"tag-{number}"])
    assert len(router._listener._scopes._known) == 8
