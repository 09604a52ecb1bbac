"""What the model reads, what it learns from, and how batches are made."""

import itertools

import pytest
import torch
from workshop import byte_tokenizer, card, rows, word_tokenizer

from adapterhub.training import encode_prompt
from adapterhub.training._batches import by_length, collate, schedule, steps_per_epoch
from adapterhub.training._encode import IGNORED, RowEncoder
from adapterhub.training._examples import check_rows
from adapterhub.training._rows import read_rows


def encode(task, data, length=64, tokenizer=None):
    tokenizer = tokenizer or byte_tokenizer()
    encoder = RowEncoder(tokenizer, task, length, last=True)
    found, faults = encoder(check_rows(task, read_rows(data, "data"))[0])
    return found, faults, encoder.truncated


def test_the_loss_is_on_the_answer_and_the_end_alone():
    tokenizer, task = byte_tokenizer(), card()
    (row,), _, _ = encode(task, [{"input": "The apple", "output": "red"}])
    assert tokenizer.decode(row.ids) == "The apple\nAnswer: red<end>"
    assert row.ids[: row.prompt] == encode_prompt(tokenizer, task.format("The apple"))
    assert row.labels == [IGNORED] * row.prompt + row.ids[row.prompt :]
    assert tokenizer.decode(row.labels[row.prompt :]) == " red<end>"


@pytest.mark.parametrize(
    ("prompt", "text"),
    [("{text} =", "2 = red"), ("{text} = ", "2 = red"), ("{text}\n", "2\nred"), ("{text}:\t", "2:\tred")],
)
def test_one_space_parts_prompt_and_answer_unless_the_prompt_ends_in_white_space(prompt, text):
    tokenizer, task = byte_tokenizer(), card(prompt=prompt)
    (row,), _, _ = encode(task, [{"input": "2", "output": " red "}])
    assert tokenizer.decode(row.ids, skip_special_tokens=True) == text
    assert row.ids[: row.prompt] == tokenizer(task.format("2"))["input_ids"]


def test_an_end_token_that_the_tokenizer_appends_is_not_part_of_the_prompt():
    tokenizer = byte_tokenizer()

    class Appending:
        eos_token_id = tokenizer.eos_token_id

        def __call__(self, text, **options):
            return {"input_ids": [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]}

    assert encode_prompt(Appending(), "The apple") == tokenizer("The apple")["input_ids"]


@pytest.mark.parametrize("length", range(12, 40))
def test_a_long_text_loses_its_beginning_and_nothing_else(length):
    tokenizer, task = byte_tokenizer(), card(prompt="Say: {text}\nAnswer:")
    text = "The apple is red. The stone is blue. The river is black."
    (row,), faults, truncated = encode(task, [{"input": text, "output": "red"}], length)
    read = tokenizer.decode(row.ids)
    assert faults == []
    assert len(row.ids) <= length
    assert read.startswith("Say: ")
    assert read.endswith("\nAnswer: red<end>")
    tail = read.removeprefix("Say: ").removesuffix("\nAnswer: red<end>")
    assert tail
    assert text.endswith(tail)
    assert truncated == (tail != text)


def test_what_cannot_be_cut_is_a_fault_with_its_place():
    found, faults, _ = encode(card(), [{"input": "x", "output": "red " * 40}, {"input": "x", "output": "red"}], 30)
    assert len(found) == 1
    assert faults[0].startswith("data row 1: a row takes at most 30 tokens. Found ")


def test_long_texts_of_a_classification_lose_their_beginning():
    task = card("classification", prompt="{text} Answer:")
    (row,), _, truncated = encode(task, [{"input": "the horse is " * 20 + "red", "label": "red"}], 14, word_tokenizer())
    assert truncated == 1
    assert len(row.ids) <= 14
    assert word_tokenizer().decode(row.ids).endswith("red answer : [SEP]") or row.ids[-1] == 3


@pytest.mark.parametrize("length", [8, 9, 15, 20, 21, 40])
def test_long_token_rows_lose_whole_words_from_the_front(length):
    tokenizer, task = byte_tokenizer(), card("token-classification", prompt="In: {text}")
    words = ["the", "unusual", "red", "table", "is", "green", "."]
    tags = [f"{'B-COLOUR' if word in {'red', 'green'} else 'O'}" for word in words]
    (row,), _, truncated = encode(task, [{"tokens": words, "tags": tags}], length)
    read = tokenizer.decode(row.ids).removeprefix("In: ").split(" ")
    assert len(row.ids) <= length
    assert read == words[-len(read) :]
    assert truncated == (len(read) < len(words))
    kept = [label for label in row.labels if label != IGNORED]
    assert kept == [int(tag != "O") for tag in tags[-len(read) :]]


def test_a_row_of_words_that_no_token_stands_for_is_a_fault():
    tokenizer = byte_tokenizer()

    class Deaf:
        eos_token_id = 1

        def __call__(self, texts, **options):
            return {"input_ids": [[1] for _ in texts], "offset_mapping": [[(0, 0)] for _ in texts]}

    del tokenizer
    _, faults, _ = encode(card("token-classification"), [{"tokens": ["a"], "tags": ["O"]}], 64, Deaf())
    assert "a row needs a word that the base's tokenizer knows" in faults[0]


@pytest.mark.parametrize("head", ["generation", "classification", "token-classification", "regression"])
def test_a_batch_is_padded_on_the_right_to_its_longest_row(head):
    found, _, _ = encode(card(head), rows(head, 5))
    batch = collate(found, head, 0)
    for position, row in enumerate(found):
        size = len(row.ids)
        assert batch.input_ids[position, :size].tolist() == row.ids
        assert batch.attention_mask[position].tolist() == [1] * size + [0] * (batch.input_ids.shape[1] - size)
    assert batch.input_ids.shape[1] == max(len(row.ids) for row in found)
    wide = head in {"generation", "token-classification"}
    assert batch.labels.shape == (batch.input_ids.shape if wide else (5,))
    assert batch.labels.dtype == (torch.float32 if head == "regression" else torch.int64)
    assert not wide or (batch.labels[batch.attention_mask == 0] == IGNORED).all()


def test_an_epoch_holds_every_row_once_and_a_resumed_order_is_the_same():
    lengths = [3 + (7 * n) % 41 for n in range(1003)]
    size = steps_per_epoch(len(lengths), 16)
    batches = list(itertools.islice(schedule(lengths, 16, seed=5), 2 * size))
    for epoch in (batches[:size], batches[size:]):
        assert sorted(position for batch in epoch for position in batch) == list(range(1003))
    assert batches[:size] != batches[size:]
    for start in (0, 1, size - 1, size, size + 4):
        assert list(itertools.islice(schedule(lengths, 16, seed=5, start=start), 5)) == batches[start : start + 5]
    assert list(itertools.islice(schedule(lengths, 16, seed=6), 5)) != batches[:5]


def test_batches_hold_rows_of_like_length():
    lengths = [3 + (7 * n) % 41 for n in range(1600)]
    batches = itertools.islice(schedule(lengths, 16, seed=0), 100)
    padding = sum(max(lengths[p] for p in batch) * len(batch) - sum(lengths[p] for p in batch) for batch in batches)
    assert padding < 0.05 * sum(lengths)


def test_by_length_keeps_every_row():
    found, _, _ = encode(card(), rows("generation", 11))
    batches = by_length(found, 4)
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert sorted(row.example.where for batch in batches for row in batch) == sorted(r.example.where for r in found)
