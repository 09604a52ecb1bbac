"""Affinities from gradients whose truth is planted, and gradients of a real base against a plain backward pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed
from peft import LoraConfig, get_peft_model
from workshop import COLOURS, bert_base, card, llama_base, rows

from adapterhub.errors import DataError, InputError
from adapterhub.training import linear_targets
from adapterhub.training._base import Bases
from adapterhub.training._batches import collate
from adapterhub.training._prepare import prepare
from adapterhub.training._score import batch_loss
from adapterhub.training.grouping import TaskGradients, affinity, gradients_of, input_hash

WIDTH, SIZE = 200, 16


def planted(count: int, overlap: float, seed: int = 0, tasks: int = 8) -> tuple[list[TaskGradients], np.ndarray]:
    """Linear regression at 0: the gradient of ½(w·x − w_t·x)² is −(w_t·x) x, and cos(w_s, w_t) is the truth."""
    generator = np.random.default_rng(seed)
    kinds = generator.normal(size=(3, WIDTH))
    truth = np.stack([kinds[t % 3] + 0.8 * generator.normal(size=WIDTH) for t in range(tasks)])
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)
    common = generator.normal(size=(round(count * overlap), WIDTH))
    found = []
    for t, weights in enumerate(truth):
        own = generator.normal(size=(count - len(common), WIDTH))
        inputs = np.concatenate([common, own])
        names = [f"common {n}" for n in range(len(common))] + [f"{t} {n}" for n in range(len(own))]
        each = -(inputs @ weights)[:, None] * inputs
        batches = range(0, count, SIZE)
        matrix = np.stack([each[b : b + SIZE].mean(axis=0) for b in batches]).astype(np.float32)
        hashes = tuple(tuple(map(input_hash, names[b : b + SIZE])) for b in batches)
        found.append(TaskGradients(f"tests/t{t}", matrix, hashes))
    return found, truth @ truth.T


def pairs(matrix: np.ndarray) -> np.ndarray:
    return matrix[np.triu_indices(len(matrix), 1)]


def correlation(matrix: np.ndarray, truth: np.ndarray) -> float:
    return float(np.corrcoef(pairs(matrix), pairs(truth))[0, 1])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("estimator", ["aggregate", "minibatches"])
def test_both_estimators_against_their_formulas(estimator: str) -> None:
    gradients, _ = planted(64, 1.0, tasks=4)
    found = affinity(gradients, estimator=estimator)
    for a, one in enumerate(gradients):
        for b, other in enumerate(gradients):
            wanted = (
                cosine(one.matrix.mean(axis=0), other.matrix.mean(axis=0))
                if estimator == "aggregate"
                else np.mean([cosine(x, y) for x, y in zip(one.matrix, other.matrix, strict=True)])
            )
            assert found.matrix[a, b] == pytest.approx(wanted, abs=1e-6)
    assert found.estimator == estimator
    assert np.array_equal(found.matrix, found.matrix.T)


@pytest.mark.parametrize("estimator", ["aggregate", "minibatches"])
@pytest.mark.parametrize("count", [128, 512])
def test_with_the_same_inputs_the_planted_similarity_is_found(estimator: str, count: int) -> None:
    drawn = [planted(count, 1.0, seed) for seed in range(5)]
    found = [(affinity(gradients, estimator=estimator), truth) for gradients, truth in drawn]
    assert all(np.all(one.overlap == 1) for one, _ in found)
    assert all(correlation(one.trusted(), truth) > 0.6 for one, truth in found)
    # What the data says of itself is what the truth would say: about the root of the reliability.
    for one, truth in found:
        assert abs(np.sqrt(one.reliability) - correlation(one.matrix, truth)) < 0.2


def test_less_overlap_and_fewer_rows_are_worse_and_it_says_so() -> None:
    def median(count: int, overlap: float) -> tuple[float, float]:
        drawn = [planted(count, overlap, seed) for seed in range(7)]
        found = [(affinity(gradients, resamples=10), truth) for gradients, truth in drawn]
        for one, _ in found:
            assert pairs(one.overlap) == pytest.approx(overlap, abs=1e-9)
            assert one.estimator == ("minibatches" if overlap == 1 else "aggregate")
        return (
            float(np.median([correlation(one.matrix, truth) for one, truth in found])),
            float(np.median([one.reliability for one, _ in found])),
        )

    found = {(n, share): median(n, share) for n in (64, 512) for share in (0.0, 0.5, 1.0)}
    for measure in (0, 1):
        assert found[64, 0.0][measure] < found[64, 0.5][measure] < found[64, 1.0][measure]
        assert found[64, 0.0][measure] < found[512, 0.0][measure]


def test_too_little_is_warned_of_and_refused() -> None:
    refused = [affinity(planted(64, 0.0, seed)[0], resamples=10) for seed in range(6)]
    assert sum(bool(one.refusal) for one in refused) >= 3
    for one in refused:
        said = "\n".join(one.warnings)
        assert "tests/t0 and tests/t1 have 0% of their inputs in common" in said
        assert "tests/t0 has 64 rows" in said
        if one.refusal:
            with pytest.raises(InputError, match="two halves of the data do not agree"):
                one.trusted()
    fine = affinity(planted(512, 1.0)[0], resamples=10)
    assert (fine.refusal, fine.warnings) == ("", ())
    strict = affinity(planted(512, 1.0)[0], resamples=10, least=0.9999)
    assert "from a split-half reliability of 1.00 on" in strict.refusal
    short = affinity(planted(48, 1.0)[0], resamples=10)
    assert "halves of at least 4 minibatches of each task. Found 3" in short.refusal
    assert np.isnan(short.reliability)


def test_two_tasks_are_judged_by_their_own_gradients() -> None:
    weak, strong = (affinity(planted(count, 1.0, tasks=2)[0], resamples=10) for count in (64, 4096))
    assert weak.reliability < 0.5 < 0.9 < strong.reliability
    noise = np.random.default_rng(0).normal(size=(2, 32, 4000)).astype(np.float32)
    hashes = tuple((str(n),) for n in range(32))
    found = affinity([TaskGradients(f"tests/t{t}", noise[t], hashes) for t in range(2)])
    assert found.reliability < 0.2
    assert found.refusal


@pytest.mark.parametrize(("estimator", "overlap"), [("aggregate", 0.0), ("aggregate", 1.0), ("minibatches", 1.0)])
def test_the_interval_holds_the_truth_of_much_data(estimator: str, overlap: float) -> None:
    inside, widths = [], {}
    for count in (256, 1024):
        for seed in range(12):
            gradients, truth = planted(count, overlap, seed, tasks=4)
            found = affinity(gradients, estimator=estimator, resamples=300)
            assert np.all(found.low <= found.matrix)
            assert np.all(found.matrix <= found.high)
            widths.setdefault(count, []).append(pairs(found.high - found.low).mean())
            if count == 1024 and estimator == "aggregate":
                inside += list((pairs(found.low) - 0.05 <= pairs(truth)) & (pairs(truth) <= pairs(found.high) + 0.05))
    assert np.median(widths[1024]) < 0.8 * np.median(widths[256])
    assert estimator == "minibatches" or np.mean(inside) > 0.8


def test_negative_pairs_are_those_whose_interval_is() -> None:
    gradients, _ = planted(512, 1.0, tasks=2)
    opposite = TaskGradients("tests/opposite", -gradients[0].matrix, gradients[0].inputs)
    found = affinity([*gradients, opposite])
    names = [{a, b} for a, b, _ in found.negative()]
    assert names[0] == {"tests/opposite", "tests/t0"}
    assert found.negative()[0][2] == pytest.approx(-1)
    assert all(found.high[found.tasks.index(a), found.tasks.index(b)] < 0 for a, b, _ in found.negative())
    assert found.tasks == ("tests/t0", "tests/t1", "tests/opposite")


def test_the_same_seed_gives_the_same_answer() -> None:
    gradients, _ = planted(128, 0.5, tasks=3)
    first, again, other = (affinity(gradients, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.low, again.low)
    assert first.reliability == again.reliability
    assert not np.array_equal(first.low, other.low)
    assert np.array_equal(first.matrix, other.matrix)


def test_faulty_gradients_are_refused() -> None:
    good, _ = planted(64, 1.0, tasks=2)
    with pytest.raises(InputError, match="two tasks or more"):
        affinity(good[:1])
    apart, _ = planted(64, 0.5, tasks=2)
    with pytest.raises(InputError, match="Use `aggregate`"):
        affinity(apart, estimator="minibatches")
    spoiled = good[1].matrix.copy()
    spoiled[0, 0] = np.nan
    with pytest.raises(InputError, match="tests/bad: gradients are"):
        affinity([good[0], TaskGradients("tests/bad", spoiled, good[1].inputs)])
    with pytest.raises(InputError, match="another number"):
        affinity([good[0], TaskGradients("tests/narrow", good[1].matrix[:, :-1], good[1].inputs)])
    still = good[1].matrix.copy()
    still[2] = 0
    with pytest.raises(InputError, match="Found 0 in tests/still"):
        affinity([good[0], TaskGradients("tests/still", still, good[1].inputs)])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(llama_base(tmp_path_factory.mktemp("base") / "llama"))


def tasks_of(base: str, heads: dict[str, str]) -> dict[str, tuple]:
    return {name: (card(head, name=name), base) for name, head in heads.items()}


def test_gradients_are_those_of_a_plain_backward_pass(base: str) -> None:
    tasks = tasks_of(base, {"tests/one": "generation"})
    data = {"tests/one": rows("generation", 11)}
    (found,) = gradients_of(tasks, data, batch_size=4, rank=3)
    assert found.matrix.shape[0] == len(found.inputs) == 2  # the last three rows make no whole minibatch
    prepared = prepare(tasks, data, {"tests/one": 0.0}, validation_rows=1, max_length=None)["tests/one"]
    set_seed(0)
    model = Bases().load(base, "generation", 0, prepared.tokenizer.pad_token_id)
    set_seed(0)
    targets = linear_targets(model)
    tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules=targets)).eval()
    by_hash = {input_hash(row.example.text): row for row in prepared.rows}
    assert list(sum(found.inputs, ())) == sorted(by_hash)[:8]
    for gradient, inputs in zip(found.matrix, found.inputs, strict=True):
        batch = collate([by_hash[key] for key in inputs], "generation", prepared.tokenizer.pad_token_id)
        tuned.zero_grad()
        batch_loss(tuned, batch, "generation")[0].backward()
        wanted = {name: p.grad for name, p in tuned.named_parameters() if p.grad is not None}
        assert not any(grad.any() for name, grad in wanted.items() if "lora_A" in name)
        flat = torch.cat([grad.flatten() for name, grad in wanted.items() if "lora_B" in name])
        assert np.allclose(gradient, flat.numpy(), atol=1e-6)
    assert found.matrix.any(axis=1).all()


def test_tasks_of_several_heads_share_one_adapter(base: str) -> None:
    heads = {
        "tests/first": "classification",
        "tests/second": "classification",
        "tests/text": "generation",
        "tests/tags": "token-classification",
        "tests/number": "regression",
    }
    data = {name: rows(head, 64) for name, head in heads.items()}
    turned = dict(zip(COLOURS, [*COLOURS[1:], COLOURS[0]], strict=True))
    # The same job with other names of the labels.
    data["tests/second"] = [row | {"label": turned[str(row["label"])]} for row in data["tests/first"]]
    found = gradients_of(tasks_of(base, heads), data, batch_size=8)
    assert len({one.matrix.shape for one in found}) == 1
    assert [one.task for one in found] == list(heads)
    assert found[0].inputs == found[1].inputs == found[2].inputs == found[4].inputs != found[3].inputs
    matrix = affinity(found, resamples=10).matrix
    assert matrix[0, 1] > 0.9
    assert matrix[0, 1] > 2 * np.abs(matrix[0, 2:]).max()


def test_inputs_are_chosen_alike_and_their_overlap_is_counted(base: str) -> None:
    names = ("tests/left", "tests/right", "tests/apart")
    tasks = tasks_of(base, dict.fromkeys(names, "generation"))
    every = rows("generation", 60)
    data = dict(zip(names, (every[:40], list(reversed(every[:40])), every[20:]), strict=True))
    whole = gradients_of(tasks, data, rows=100, batch_size=4)
    assert [one.rows for one in whole] == [40, 40, 40]
    assert np.array_equal(whole[0].matrix, whole[1].matrix)  # the order of the rows does not matter
    assert affinity(whole, resamples=10).overlap.tolist() == [[1, 1, 0.5], [1, 1, 0.5], [0.5, 0.5, 1]]
    some = gradients_of(tasks, data, rows=16, batch_size=4)
    assert [one.rows for one in some] == [16, 16, 16]
    assert some[0].inputs == some[1].inputs
    assert set(sum(some[0].inputs, ())) <= set(sum(whole[0].inputs, ()))


def test_what_cannot_share_an_adapter_is_refused(base: str, tmp_path: Path) -> None:
    other = str(bert_base(tmp_path / "bert"))
    tasks = {
        "tests/one": (card("generation", name="tests/one"), base),
        "tests/two": (card("classification", name="tests/two"), other),
    }
    data = {"tests/one": rows("generation", 8), "tests/two": rows("classification", 8)}
    with pytest.raises(InputError, match="have one base model"):
        gradients_of(tasks, data)
    alone = {"tests/one": tasks["tests/one"]}
    with pytest.raises(InputError, match=r"at least one minibatch of 16 rows. Found fewer of tests/one \(8\)"):
        gradients_of(alone, {"tests/one": data["tests/one"]}, batch_size=16)
    with pytest.raises(DataError, match="tests/one row 1"):
        gradients_of(alone, {"tests/one": [{"input": "a"}]})
    with pytest.raises(InputError, match="Found no task"):
        gradients_of({}, {})


def test_hashes_are_of_words() -> None:
    assert input_hash("one  two\n") == input_hash("one two") != input_hash("onetwo")
    assert len(input_hash("")) == 16
