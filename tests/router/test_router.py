from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from router_world import DIMENSION, FakeEncoder, FakeRegistry, World, calibration_of, vectors

from adapterhub.errors import InputError, TaskNotFoundError
from adapterhub.route import Route
from adapterhub.router import Background, Calibration, Router, Sums

NAMES = ("language/grammar", "language/sentiment", "knowledge/world", "reasoning/math/sums", "reasoning/math/words")


class Hub:
    """A world, its registry with the five tasks, an encoder that knows three texts of each, and a background."""

    def __init__(self, order=NAMES, seed=0, spread=2.0):
        self.world = World(seed, spread)
        sums = Sums.of([self.world.texts(self.world.mean(), 10) for _ in range(60)], DIMENSION)
        calibration = calibration_of(1.5, np.sort(self.world.random.normal(6, 4, 200)), np.linspace(-1, 0, 200))
        self.background = Background("fake", sums, calibration)
        self.registry, self.encoder = FakeRegistry(), FakeEncoder()
        self.means = {name: self.world.mean() for name in NAMES}
        tasks = {name: vectors(name, self.world.texts(mean, 12)) for name, mean in self.means.items()}
        for name in NAMES:
            for number, row in enumerate(self.world.texts(self.means[name], 3)):
                self.encoder.table[f"{name} {number}"] = row
        self.encoder.table["far"] = self.world.mu + 40 * self.world.random.normal(size=DIMENSION)
        for name in order:
            self.registry.add(tasks[name])

    def new_task(self, name, count=6):
        return vectors(name, self.world.texts(self.world.mean(), count))

    def router(self, **options):
        return Router(self.registry, self.encoder, background=self.background, **options)

    @property
    def texts(self):
        return [text for text in self.encoder.table if text != "far"]


@pytest.fixture
def hub():
    return Hub()


def scores(router, texts):
    return [{c.task: c.score for c in decision.candidates} for decision in router.decide(texts)]


def test_texts_find_their_task(hub):
    router = hub.router()
    assert [route.adapters[0] for route in router.route(hub.texts)] == [text.split()[0] for text in hub.texts]
    assert all(route.gates == (1.0,) for route in router.route(hub.texts))
    assert router.detect_task("knowledge/world 0") == "knowledge/world"
    assert router.route([]) == []


def test_a_batch_is_its_texts_one_by_one_in_any_order(hub):
    router, texts = hub.router(), [*hub.texts, "far", *hub.texts[:2]]
    alone = [router.decide([text], 3)[0] for text in texts]
    assert router.decide(texts, 3) == alone
    order = np.random.default_rng(0).permutation(len(texts))
    assert router.decide([texts[at] for at in order], 3) == [alone[at] for at in order]


def test_adding_a_task_moves_no_score(hub):
    router = hub.router()
    before = scores(router, hub.texts)
    hub.registry.add(hub.new_task("language/new"))
    hub.registry.add(hub.new_task("a-first"))
    after = scores(router, hub.texts)
    assert {"language/new", "a-first"} < set(after[0])
    for old, new in zip(before, after, strict=True):
        assert {name: new[name] for name in old} == old  # bit-equal
    hub.registry.remove("language/new")
    hub.registry.remove("a-first")
    assert scores(router, hub.texts) == before


def test_the_order_of_adding_and_the_time_of_making_do_not_matter(hub):
    early = Hub(order=())
    early_router = early.router()
    assert early_router.decide(["far"])[0].kind == "none"
    for name in reversed(NAMES):
        early.registry.add(hub.registry.tasks[name])
    late = hub.router()
    assert early_router.decide(hub.texts, 3) == late.decide(hub.texts, 3) == hub.router().decide(hub.texts, 3)


def test_vectors_are_read_again_only_when_the_registry_changed(hub):
    router = hub.router()
    router.route(hub.texts)
    asked = hub.registry.catalog.asked
    asked.clear()
    router.route(hub.texts)
    assert not [question for question in asked if question.startswith(("vectors", "ids"))]


def test_only_the_tasks_that_matter_are_asked_for_by_name(hub):
    for number in range(400):
        hub.registry.add(hub.new_task(f"more/task-{number}"))
    router = hub.router()
    asked = hub.registry.catalog.asked
    asked.clear()
    decision = router.decide(hub.texts[:1])[0]
    assert len(decision.candidates) == 16
    assert max(int(question.split()[1]) for question in asked if question.startswith("names")) < 100
    assert not [question for question in asked if question.startswith(("vectors", "ids", "get", "children"))]


def test_a_changed_task_changes_its_own_score_alone(hub):
    router = hub.router()
    before = scores(router, hub.texts)[0]
    hub.registry.add(hub.new_task("knowledge/world"))
    after = scores(router, hub.texts)[0]
    assert [name for name in NAMES if before[name] != after[name]] == ["knowledge/world"]


def test_tasks_without_an_adapter_are_not_routed_to(hub):
    task = hub.registry.tasks["knowledge/world"]
    hub.registry.add(task, adapter=False)
    router = hub.router()
    assert "knowledge/world" not in scores(router, hub.texts)[0]
    hub.registry.add(task)
    assert router.detect_task("knowledge/world 0") == "knowledge/world"


def test_tables_that_were_made_anew_are_read_anew(hub):
    """A folder's catalogue is derived from its cards and may be deleted while a router is there."""
    router = hub.router()
    hub.registry.add(hub.new_task("language/new"))
    before = scores(router, hub.texts)
    fresh = Hub(order=())
    for name in reversed([*NAMES[1:], "language/new"]):
        fresh.registry.add(hub.registry.tasks[name])
    vars(hub.registry.catalog).update(vars(fresh.registry.catalog))
    hub.registry.catalog.seq -= 2
    after = scores(router, hub.texts)
    assert [{name: score for name, score in row.items() if name != NAMES[0]} for row in before] == after


def test_a_task_that_is_deleted_between_its_score_and_its_name_is_asked_for_again(hub):
    router, catalog = hub.router(), hub.registry.catalog
    expected = {name for name in NAMES if name != "language/grammar"}
    names_of, taken = catalog.names_of, []

    def late(ids):
        if not taken:
            taken.append(hub.registry.remove("language/grammar"))
        return names_of(ids)

    catalog.names_of = late
    assert {c.task for c in router.decide(["language/grammar 0"])[0].candidates} == expected


def test_a_fault_that_has_another_cause_is_told(hub):
    router = hub.router()

    def broken(ids):
        raise InputError("broken")

    hub.registry.catalog.names_of = broken
    with pytest.raises(InputError, match="broken"):
        router.route(["far"])


def test_none_for_a_far_text(hub):
    decision = hub.router().decide(["far"])[0]
    assert (decision.kind, decision.route) == ("none", Route())
    assert decision.candidates[0].score <= decision.together < decision.threshold == hub.router().threshold
    assert hub.router().detect_task("far") is None
    assert len(hub.router().detect_multiple_tasks("far")) == 3


def test_probabilities_add_up_and_explain_themselves_up_the_tree(hub):
    for decision in hub.router().decide([*hub.texts, "far"]):
        total = sum(candidate.probability for candidate in decision.candidates)
        assert total + decision.none_probability == pytest.approx(1)
        masses = dict(decision.branches)
        assert masses["reasoning"] == pytest.approx(masses["reasoning/math"])
        assert masses["reasoning"] + masses["language"] + masses["knowledge"] == pytest.approx(total)


def test_the_margin_and_the_epoch_are_told(hub):
    router = hub.router()
    for decision in router.decide(hub.texts):
        first, second = decision.candidates[:2]
        assert decision.margin == pytest.approx(first.probability / second.probability)
        assert decision.epoch == router.epoch
        assert decision.plausible[0] == first.task
    assert router.decide(["far"], under="knowledge/world")[0].margin == np.inf


def test_detect_multiple_tasks_clamps(hub):
    router = hub.router()
    found = router.detect_multiple_tasks("knowledge/world 1", top_k=50)
    assert len(found) == 5
    assert found[0][0] == "knowledge/world"
    assert [probability for _, probability in found] == sorted((p for _, p in found), reverse=True)
    assert router.detect_multiple_tasks("knowledge/world 1", top_k=2) == found[:2]
    assert len(router.detect_multiple_tasks("knowledge/world 1")) == 3


def test_an_ambiguous_text_is_mixed_only_on_request_and_k_clamps(hub):
    hub.background = Background("fake", hub.background.sums, Calibration(1e3))
    pair = NAMES[:2]
    hub.encoder.table["both"] = (hub.registry.tasks[pair[0]].total + hub.registry.tasks[pair[1]].total) / 24
    flat = hub.router(policy="mixture").decide(["both"], k=99)[0]  # a high temperature: everything is ambiguous
    assert flat.kind == "ambiguous"
    assert len(flat.route.adapters) == 5
    assert sum(flat.route.gates) == pytest.approx(1)
    assert flat.route.gates[0] == max(flat.route.gates)
    assert set(flat.ambiguous_with) == set(NAMES) - {flat.candidates[0].task}
    assert hub.router().route(["both"], k=3)[0] == Route.to(flat.candidates[0].task)
    assert hub.router(policy="base").route(["both"], k=3)[0] == Route()


def test_a_branch_answers_where_none_of_its_tasks_is_sure(hub):
    """Two tasks that listen for the same inputs, below a task of their branch's name."""
    hub.registry.add(vectors("language/sentiment/films", hub.registry.tasks["language/sentiment"].examples))
    hub.registry.add(vectors("language/sentiment/books", hub.registry.tasks["language/sentiment"].examples[::-1]))
    text = "language/sentiment 0"
    decision = hub.router().decide([text])[0]
    assert decision.candidates[0].probability < 0.5
    assert (decision.kind, decision.route) == ("branch", Route.to("language/sentiment"))
    assert dict(decision.branches)["language/sentiment"] > 0.8
    assert decision.ambiguous_with
    assert hub.router().detect_task(text) == "language/sentiment"
    for policy in ("mixture", "base"):
        assert hub.router(policy=policy).route([text], 3) == [decision.route]
    assert hub.router().decide([text], under="language/sentiment/films")[0].kind == "sure"
    hub.registry.add(hub.registry.tasks["language/sentiment"], adapter=False)
    assert hub.router().decide([text])[0].kind == "ambiguous"


def test_twins_are_told_apart_by_the_order_of_adding(hub):
    twin = hub.registry.tasks["knowledge/world"]
    hub.registry.add(vectors("a-twin", twin.examples))
    router = hub.router()
    assert router.detect_task("knowledge/world 0") == "knowledge/world"
    first, second = router.decide(["knowledge/world 0"])[0].candidates[:2]
    assert first.score == second.score
    assert (first.task, second.task) == ("knowledge/world", "a-twin")


def test_a_task_without_an_example_is_cold_until_it_has_one(hub):
    hub.registry.add(vectors("cold/task", [], hub.means["knowledge/world"]))
    hub.registry.remove("knowledge/world")
    router = hub.router()
    hub.encoder.table["new"] = hub.means["knowledge/world"]
    cold = router.decide(["new"])[0]
    assert (cold.candidates[0].task, cold.cold) == ("cold/task", ("cold/task",))
    assert router.decide(["language/grammar 0"])[0].cold == ()
    router.feedback("new", "cold/task")
    warm = router.decide(["new"])[0]
    assert (warm.candidates[0].task, warm.cold) == ("cold/task", ())
    assert warm.candidates[0].score != cold.candidates[0].score
    assert hub.registry["cold/task"].examples == ("new",)


def test_feedback_is_checked(hub):
    router = hub.router()
    with pytest.raises(InputError, match="visible character"):
        router.feedback(" ", "knowledge/world")
    with pytest.raises(TaskNotFoundError, match="knowledge/word"):
        router.feedback("far", "knowledge/word")


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_an_error(hub, k):
    router = hub.router()
    for call in (router.route, router.decide, router.decide_conversation):
        with pytest.raises(InputError, match="at least 1"):
            call(["far"], k)
    for call in (router.detect_multiple_tasks, router.decide_parts, router.explain):
        with pytest.raises(InputError, match="at least 1"):
            call("far", k)


def test_bad_texts_are_errors(hub):
    router = hub.router()
    with pytest.raises(InputError, match="row 1"):
        router.route(["far", " "])
    with pytest.raises(InputError, match="list of strings"):
        router.route("far")
    for call in (router.detect_task, router.decide_parts, router.explain):
        with pytest.raises(InputError, match="visible character"):
            call("")


def test_nan_of_the_encoder_is_an_error(hub):
    hub.encoder.table["broken"] = np.full(DIMENSION, np.nan)
    with pytest.raises(InputError, match="NaN"):
        hub.router().route(["far", "broken"])


def test_nan_in_the_catalogue_is_an_error_and_changes_no_row(hub):
    router = hub.router()
    before = scores(router, hub.texts)
    task = hub.new_task("broken/task")
    total = task.total.copy()
    total[0] = np.nan
    hub.registry.add(replace(task, total=total))
    with pytest.raises(InputError, match="NaN"):
        router.route(["far"])
    hub.registry.remove("broken/task")
    assert scores(router, hub.texts) == before


def test_bad_options_are_errors(hub):
    with pytest.raises(InputError, match="Did you mean `mixture`"):
        hub.router(policy="mixtur")
    for alpha in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match="share"):
            hub.router(alpha=alpha)
    with pytest.raises(InputError, match="belong to one encoder"):
        Router(
            hub.registry, hub.encoder, background=Background("other", hub.background.sums, hub.background.calibration)
        )


def test_a_larger_alpha_refuses_more(hub):
    assert hub.router(alpha=0.01).threshold < hub.router(alpha=0.05).threshold < hub.router(alpha=0.5).threshold
    assert hub.router(alpha=0.0).decide(["far"])[0].kind != "none"


def test_more_tasks_than_the_shortlist_are_searched_by_the_index(hub, monkeypatch):
    monkeypatch.setattr("adapterhub.router._hearing.SHORTLIST", 4)
    full = hub.router().decide(hub.texts)
    for number in range(40):
        hub.registry.add(hub.new_task(f"more/task-{number}"))
    short = hub.router().decide(hub.texts)
    for one, other in zip(full, short, strict=True):
        assert len(other.candidates) == 4
        assert one.candidates[0].score == other.candidates[0].score
