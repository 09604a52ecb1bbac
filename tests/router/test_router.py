from __future__ import annotations

import numpy as np
import pytest
from router_world import DIMENSION, FakeEncoder, FakeRegistry, World, vectors, with_nan

from adapterhub.errors import InputError, TaskNotFoundError
from adapterhub.route import Route
from adapterhub.router import Background, Calibration, Router, Sums

NAMES = ("language/grammar", "language/sentiment", "knowledge/world", "reasoning/math/sums", "reasoning/math/words")


class Hub:
    """A world, its registry with the five tasks, an encoder that knows three texts of each, and a background."""

    def __init__(self, order=NAMES, seed=0):
        self.world = World(seed)
        sums = Sums.of([self.world.texts(self.world.mean(), 10) for _ in range(60)], DIMENSION)
        calibration = Calibration(1.5, np.sort(self.world.random.normal(6, 4, 200)), np.linspace(0, 1, 200))
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


def test_adding_a_task_moves_no_stored_number_and_no_score(hub):
    router = hub.router()
    before, rows = scores(router, hub.texts), {name: router._rows[name].copy() for name in NAMES}
    hub.registry.add(hub.new_task("language/new"))
    hub.registry.add(hub.new_task("a-first"))
    after = scores(router, hub.texts)
    assert {"language/new", "a-first"} < set(after[0])
    for old, new in zip(before, after, strict=True):
        assert {name: new[name] for name in old} == old  # bit-equal
    assert all(np.array_equal(router._rows[name], rows[name]) for name in NAMES)
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


def test_registry_is_read_again_only_when_it_changed(hub):
    router = hub.router()
    asked = hub.registry.asked
    router.route(hub.texts)
    router.route(hub.texts)
    assert hub.registry.asked == asked
    hub.registry.add(hub.new_task("x"))
    router.route(hub.texts)
    assert hub.registry.asked == asked + 1


def test_a_changed_task_gets_a_new_row(hub):
    router = hub.router()
    hub.registry.add(hub.new_task("knowledge/world"))
    rows = {name: router._rows[name].copy() for name in NAMES}
    router.route(hub.texts)
    changed = [name for name in NAMES if not np.array_equal(rows[name], router._rows[name])]
    assert changed == ["knowledge/world"]


def test_tasks_without_an_adapter_are_not_routed_to(hub):
    hub.registry.add(hub.registry.tasks["knowledge/world"], adapter=False)
    router = hub.router()
    assert "knowledge/world" not in scores(router, hub.texts)[0]
    hub.registry.bare.clear()
    hub.registry.seq += 1
    assert router.detect_task("knowledge/world 0") == "knowledge/world"


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


def test_an_unknown_subtree_is_an_error_with_a_near_name(hub):
    with pytest.raises(TaskNotFoundError, match="Did you mean `language/grammar`"):
        hub.router().route(["far"], under="language/gramar")
    with pytest.raises(TaskNotFoundError, match="'lang'"):
        hub.router().route(["far"], under="lang")


def test_a_subtree_without_adapters_answers_none(hub):
    hub.registry.add(hub.new_task("empty/task"), adapter=False)
    assert hub.router().decide(["far"], under="empty")[0].kind == "none"


def test_none_for_a_far_text(hub):
    decision = hub.router().decide(["far"])[0]
    assert (decision.kind, decision.route) == ("none", Route())
    assert decision.candidates[0].score < decision.threshold == hub.router().threshold
    assert hub.router().detect_task("far") is None
    assert len(hub.router().detect_multiple_tasks("far")) == 3


def test_probabilities_add_up_and_explain_themselves_up_the_tree(hub):
    for decision in hub.router().decide([*hub.texts, "far"]):
        total = sum(candidate.probability for candidate in decision.candidates)
        assert total + decision.none_probability == pytest.approx(1)
        masses = dict(decision.branches)
        assert masses["reasoning"] == pytest.approx(masses["reasoning/math"])
        assert masses["reasoning"] + masses["language"] + masses["knowledge"] == pytest.approx(total)


def test_detect_multiple_tasks_clamps(hub):
    router = hub.router()
    found = router.detect_multiple_tasks("knowledge/world 1", top_k=50)
    assert len(found) == 5
    assert found[0][0] == "knowledge/world"
    assert [probability for _, probability in found] == sorted((p for _, p in found), reverse=True)
    assert router.detect_multiple_tasks("knowledge/world 1", top_k=2) == found[:2]
    assert len(router.detect_multiple_tasks("knowledge/world 1")) == 3


def test_an_ambiguous_text_is_mixed_only_on_request_and_k_clamps(hub):
    pair = NAMES[:2]
    hub.encoder.table["both"] = (hub.registry.tasks[pair[0]].total + hub.registry.tasks[pair[1]].total) / 24
    decision = hub.router(policy="mixture", alpha=0.0).decide(["both"], k=99)[0]
    ranked = [candidate.probability for candidate in decision.candidates]
    if decision.kind == "ambiguous":
        assert sum(decision.route.gates) == pytest.approx(1)
        assert len(decision.route.adapters) == 5
    hub.background = Background("fake", hub.background.sums, Calibration(1e3, np.empty(0), np.empty(0)))
    flat = hub.router(policy="mixture").decide(["both"], k=99)[0]  # a high temperature: everything is ambiguous
    assert flat.kind == "ambiguous"
    assert len(flat.route.adapters) == 5
    assert flat.route.gates[0] == max(flat.route.gates)
    assert hub.router().route(["both"], k=3)[0] == Route.to(flat.candidates[0].task)
    assert hub.router(policy="base").route(["both"], k=3)[0] == Route()
    assert ranked == sorted(ranked, reverse=True)


def test_twins_are_told_apart_by_name(hub):
    twin = hub.registry.tasks["knowledge/world"]
    hub.registry.add(vectors("a-twin", twin.examples))
    router = hub.router()
    assert router.detect_task("knowledge/world 0") == "a-twin"
    first, second = router.decide(["knowledge/world 0"])[0].candidates[:2]
    assert first.score == second.score
    assert (first.task, second.task) == ("a-twin", "knowledge/world")


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_an_error(hub, k):
    for call in (hub.router().route, hub.router().decide):
        with pytest.raises(InputError, match="at least 1"):
            call(["far"], k)
    with pytest.raises(InputError, match="at least 1"):
        hub.router().detect_multiple_tasks("far", k)


def test_bad_texts_are_errors(hub):
    router = hub.router()
    with pytest.raises(InputError, match="row 1"):
        router.route(["far", " "])
    with pytest.raises(InputError, match="list of strings"):
        router.route("far")
    with pytest.raises(InputError, match="visible character"):
        router.detect_task("")


def test_nan_of_the_encoder_is_an_error(hub):
    hub.encoder.table["broken"] = np.full(DIMENSION, np.nan)
    with pytest.raises(InputError, match="NaN"):
        hub.router().route(["far", "broken"])


def test_nan_in_the_catalogue_is_an_error_that_names_the_task_and_changes_no_row(hub):
    router = hub.router()
    before = scores(router, hub.texts)
    hub.registry.add(with_nan(hub.new_task("broken/task")))
    with pytest.raises(InputError, match="broken/task"):
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


def test_refit_takes_the_hub_in_and_is_independent_of_order(hub):
    for number in range(30):
        hub.registry.add(hub.new_task(f"more/task-{number}", count=12))
    router = hub.router()
    before = scores(router, hub.texts)
    router.refit()
    assert scores(router, hub.texts) != before
    assert [route.adapters[0] for route in router.route(hub.texts)] == [text.split()[0] for text in hub.texts]
    other = hub.router()
    hub.registry.tasks = dict(reversed(hub.registry.tasks.items()))
    other.refit()
    assert scores(other, hub.texts) == scores(router, hub.texts)


def test_small_tasks_do_not_shape_a_refit_beside_a_background(hub):
    hub.registry.tasks = {name: vectors(name, task.examples[:9]) for name, task in hub.registry.tasks.items()}
    router = hub.router()
    before = scores(router, hub.texts)
    router.refit()
    assert scores(router, hub.texts) == before


@pytest.mark.parametrize("examples", [0, 1, 2, 12])
@pytest.mark.parametrize("tasks", [0, 1, 2, 5])
def test_without_a_background_a_hub_of_any_size_works(hub, examples, tasks):
    registry = FakeRegistry()
    for name in NAMES[:tasks]:
        registry.add(vectors(name, hub.registry.tasks[name].examples[:examples], hub.means[name]))
    router = Router(registry, hub.encoder)
    decisions = router.decide([*hub.texts, "far"], 2)
    found = [[decision.none_probability, *(c.probability for c in decision.candidates)] for decision in decisions]
    assert np.isfinite(found).all()
    assert all(len(decision.candidates) == tasks for decision in decisions)
    if tasks == 5:
        right = [d.candidates[0].task == text.split()[0] for d, text in zip(decisions, hub.texts, strict=False)]
        assert np.mean(right) > 0.8


def test_without_a_background_many_examples_give_statistics_of_its_own(hub):
    for number in range(30):
        hub.registry.add(hub.new_task(f"more/task-{number}", count=12))
    router = Router(hub.registry, hub.encoder)
    assert len(set(router._epoch.psi)) > 10
    assert np.isfinite(router.threshold)
    assert router.decide(["far"])[0].kind == "none"
    best = [decision.candidates[0].task for decision in router.decide(hub.texts)]
    assert best == [text.split()[0] for text in hub.texts]


def test_more_tasks_than_the_shortlist_are_searched_by_the_index(hub, monkeypatch):
    monkeypatch.setattr("adapterhub.router._rows.SHORTLIST", 4)
    full = hub.router().decide(hub.texts)
    for number in range(40):
        hub.registry.add(hub.new_task(f"more/task-{number}"))
    short = hub.router().decide(hub.texts)
    for one, other in zip(full, short, strict=True):
        assert len(other.candidates) == 4
        assert one.candidates[0] == other.candidates[0] or one.candidates[0].score == other.candidates[0].score
