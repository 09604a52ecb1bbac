"""A routed model answers as bare PEFT does, in one schema, whatever else is in the batch."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
import torch
from model_hub import HEADS, Hub, build, tokens
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from adapterhub.errors import AdapterHubError, InputError, TaskNotFoundError
from adapterhub.model import Entity, RoutedModel, spoken
from adapterhub.model._answers import _log_probability, entities
from adapterhub.route import Route
from adapterhub.task import Task

TEXTS = (
    "colour: the apple is red",
    "mood: the stone is blue.",
    "names: The river is green, said Anna.",
    "size: a horse",
    "nothing that is known",
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    return build(tmp_path_factory.mktemp("hub"))


def test_predict_has_the_keys_of_one_schema_for_every_head(hub: Hub) -> None:
    for text in TEXTS:
        found = hub.model.predict(text, num_predictions=3)
        assert list(found) == ["task", "input", "predictions", "scores", "adapters"]
        assert found["input"] == text
        assert len(found["predictions"]) == len(found["scores"])
        assert found["scores"] == sorted(found["scores"], reverse=True)
        assert all(0 <= score <= 1 for score in found["scores"])
        json.dumps(found)


def test_the_route_is_told(hub: Hub) -> None:
    assert hub.model.predict(TEXTS[1])["adapters"] == [{"name": "words/mood", "gate": 1.0}]
    base = hub.model.predict(TEXTS[4])
    assert base["task"] is None
    assert base["adapters"] == []


def test_generated_texts_and_scores_equal_those_of_peft(hub: Hub) -> None:
    peft, text = hub.reference("words/colour"), TEXTS[0]
    inputs = tokens(hub, f"{text}\nAnswer:")
    start = inputs["input_ids"].shape[1]
    out = peft.generate(
        **inputs, max_new_tokens=6, num_beams=3, num_return_sequences=3, do_sample=False, length_penalty=0.0,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    expected = [t.strip() for t in hub.model.tokenizer.batch_decode(out.sequences[:, start:], skip_special_tokens=True)]
    found = hub.model.predict(text, num_predictions=3)
    assert found["predictions"] == list(dict.fromkeys(expected))
    assert found["scores"][0] == pytest.approx(out.sequences_scores.exp()[0].item(), abs=1e-5)


def test_the_score_of_a_greedy_text_is_the_probability_of_its_tokens(hub: Hub) -> None:
    peft, text = hub.reference("words/colour"), TEXTS[0]
    inputs = tokens(hub, f"{text}\nAnswer:")
    start = inputs["input_ids"].shape[1]
    whole = peft.generate(**inputs, max_new_tokens=6, do_sample=False)
    with torch.no_grad():
        steps = peft(input_ids=whole).logits[0, start - 1 : -1].log_softmax(-1)
    expected = steps.gather(-1, whole[0, start:, None]).sum().exp().item()
    assert hub.model.predictions([text])[0].scores[0] == pytest.approx(expected, abs=1e-5)


def test_label_probabilities_equal_those_of_peft(hub: Hub) -> None:
    with torch.no_grad():
        expected = hub.reference("words/mood")(**tokens(hub, TEXTS[1])).logits[0].softmax(-1)
    found = hub.model.predict(TEXTS[1], num_predictions=3)
    labels = hub.registry["words/mood"].labels
    assert {label: pytest.approx(expected[i].item(), abs=1e-5) for i, label in enumerate(labels)} == dict(
        zip(found["predictions"], found["scores"], strict=True)
    )
    assert len(hub.model.predict(TEXTS[1], num_predictions=2)["predictions"]) == 2


def test_a_regression_answers_the_number_of_peft(hub: Hub) -> None:
    with torch.no_grad():
        expected = hub.reference("words/size")(**tokens(hub, TEXTS[3])).logits.item()
    assert hub.model.predict(TEXTS[3])["predictions"] == [pytest.approx(expected, abs=1e-5)]


def test_entities_cover_the_words_that_the_tags_of_peft_name(hub: Hub) -> None:
    text = TEXTS[2]
    inputs = tokens(hub, text)
    with torch.no_grad():
        tags = hub.reference("words/names")(**inputs).logits[0].argmax(-1).tolist()
    labels = hub.registry["words/names"].labels
    encoding = hub.model.tokenizer(text, return_offsets_mapping=True)
    kinds: dict[int, str] = {}  # character -> label, by each word's last token
    for (start, end), tag in zip(encoding["offset_mapping"], tags, strict=True):
        if end == len(text) or not (text[end - 1].isalnum() and text[end].isalnum()):
            kinds[end - 1] = labels[tag][2:] if start < end else ""
    for entity in hub.model.predictions([text])[0].predictions:
        assert isinstance(entity, Entity)
        assert text[entity.start : entity.end] == entity.text
        assert kinds[entity.end - 1] == entity.label


def test_a_row_does_not_depend_on_its_neighbours(hub: Hub) -> None:
    alone = [hub.model.predictions([text])[0] for text in TEXTS]
    for order in itertools.islice(itertools.permutations(range(len(TEXTS))), 0, None, 17):
        together = hub.model.predictions([TEXTS[i] for i in order])
        for i, found in zip(order, together, strict=True):
            assert found.predictions == alone[i].predictions or isinstance(found.predictions[0], float)
            assert found.scores == pytest.approx(alone[i].scores, abs=1e-5)


def test_a_given_task_overrides_the_router(hub: Hub) -> None:
    found = hub.model.predict(TEXTS[0], task="words/mood")
    assert found["task"] == "words/mood"
    assert set(found["predictions"]) == set(hub.registry["words/mood"].labels)


def test_generate_gives_one_line_a_text(hub: Hub) -> None:
    lines = hub.model.generate(list(TEXTS))
    assert len(lines) == len(TEXTS)
    assert lines[1] in HEADS["words/mood"][3]["labels"]
    assert spoken((Entity("Anna", "PER", 0, 4), Entity("Rome", "LOC", 5, 9))) == "Anna (PER), Rome (LOC)"
    assert hub.model.generate([]) == []


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.predict("  "), InputError, "visible character"),
        (lambda m: m.predict("colour: x", num_predictions=0), InputError, "num_predictions is at least 1"),
        (lambda m: m.predict("x", task="words/colors"), TaskNotFoundError, "words/colour"),
        (lambda m: m.predictions(["a", "b"], ["words/mood"]), InputError, "one task for each text"),
        (lambda m: m.predict("mood: " + "very " * 400), InputError, "reads at most 64 tokens"),
        (lambda m: m.predict("colour: " + "very " * 400), InputError, "reads at most 64 tokens"),
        (lambda m: RoutedModel(m.engine, m.tokenizer, m.registry, m.router, k=0), InputError, "k is at least 1"),
        (lambda m: RoutedModel.from_pretrained("no/such-folder", m.registry), InputError, "no/such-folder"),
    ],
)
def test_bad_input_is_one_clear_error(hub: Hub, call, error: type[AdapterHubError], message: str) -> None:
    with pytest.raises(error, match=message):
        call(hub.model)
    assert hub.model.predict(TEXTS[1])["task"] == "words/mood"


def test_a_replaced_adapter_is_used_at_once(hub: Hub, tmp_path) -> None:
    from model_hub import random_adapter

    before = hub.model.predict(TEXTS[3])["predictions"]
    old = hub.registry["words/size"]
    folder = random_adapter(hub.base, "words/size", tmp_path / "new", 99)
    hub.registry.add(replace(old, adapter=None, sha256=None), folder, replace=True)
    assert hub.model.predict(TEXTS[3])["predictions"] != before


class Tokens:
    """What the score of a text asks of a tokenizer."""

    def __init__(self, pad: int | None, eos: int) -> None:
        self.pad_token_id, self.eos_token_id = pad, eos


@pytest.mark.parametrize(("pad", "counted"), [(0, [3, 4]), (1, [2, 4]), (None, [4, 4])])
def test_the_end_token_counts_and_padding_does_not(pad: int | None, counted: list[int]) -> None:
    scores = tuple(torch.randn(2, 5, generator=torch.Generator().manual_seed(step)) for step in range(4))
    new = torch.tensor([[3, 1, 1, 0 if pad == 0 else 1], [2, 3, 4, 1]])
    steps = torch.stack(scores, 1).log_softmax(-1).gather(-1, new[..., None])[..., 0]
    found = _log_probability(scores, new, Tokens(pad, 1), [4, 4])
    torch.testing.assert_close(found, torch.stack([row[:end].sum() for row, end in zip(steps, counted, strict=True)]))


def test_an_input_that_also_stands_in_the_template_is_read_at_its_own_place(hub: Hub) -> None:
    task = replace(hub.registry["words/names"], prompt="Anna saw {text}.")
    prompt = task.format("Anna")
    offsets = hub.model.tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    logits = torch.zeros(len(offsets), len(task.labels))
    logits[:, task.labels.index("O")] = 5.0
    for row, (start, end) in zip(logits, offsets, strict=True):
        if start >= len("Anna saw ") and end <= len("Anna saw Anna"):
            row[task.labels.index("B-PER")] = 9.0
    found, _ = entities(logits, task, "Anna", prompt, hub.model.tokenizer, last=True)
    assert found == [Entity("Anna", "PER", 0, 4)]


def test_a_tokenizer_that_closes_texts_leaves_prompts_open(hub: Hub) -> None:
    tokenizer = AutoTokenizer.from_pretrained(hub.base)
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    assert tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
    closing = RoutedModel(hub.model.engine, tokenizer, hub.registry, hub.model.router)
    assert closing.predict(TEXTS[0]) == hub.model.predict(TEXTS[0])


def test_cards_without_an_adapter_have_no_say_in_the_base(hub: Hub) -> None:
    hub.registry.add(Task("other/bare", "Nothing yet.", base_model="acme/other"))
    try:
        model = RoutedModel.from_pretrained(registry=hub.registry, router=hub.model.router)
        assert model.predict(TEXTS[1]) == hub.model.predict(TEXTS[1])
        with pytest.raises(InputError, match="k is at least 1"):
            RoutedModel.from_pretrained(registry=hub.registry, router=hub.model.router, k=0)
    finally:
        hub.registry.remove("other/bare")


def test_a_card_that_contradicts_its_adapters_head_is_one_error(hub: Hub) -> None:
    from dataclasses import replace

    from adapterhub.errors import IncompatibleAdapterError
    from adapterhub.model import check_head

    head = hub.model.engine.load(hub.model._placement.place(Route.to("words/mood")).adapters[0])
    card = hub.registry["words/mood"]
    check_head(card, head, "here")
    with pytest.raises(IncompatibleAdapterError, match=r"2 outputs, as the card says\. Found 3"):
        check_head(replace(card, labels=("bad", "good")), head, "here")
    with pytest.raises(IncompatibleAdapterError, match=r"needs an adapter with no head of its own\. Found sequence"):
        check_head(replace(hub.registry["words/colour"], name="words/mood"), head, "here")


def test_one_text_instead_of_a_list_is_told(hub: Hub) -> None:
    with pytest.raises(InputError, match="list of texts"):
        hub.model.generate("colour: the apple is red")


def test_a_truncated_base_is_one_error(hub: Hub, tmp_path) -> None:
    import shutil

    from adapterhub.model import load_base

    copy = tmp_path / "base"
    shutil.copytree(hub.base, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match="restore a folder from a copy"):
        load_base(copy)
