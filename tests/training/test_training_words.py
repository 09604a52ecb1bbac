"""Words, spans and the tokens that stand for them."""

import pytest
from transformers import BertConfig, GPT2Config, LlamaConfig
from workshop import byte_tokenizer, word_tokenizer

from adapterhub.errors import InputError
from adapterhub.training import align_words, is_decoder, locate_words, split_words

TEXTS = ["Anna, née O'Neil, lives in 3 towns.", "naïve—café!", "  spaced   out ", "东京 is big", "..."]


@pytest.mark.parametrize("text", TEXTS)
def test_split_words_gives_the_spans_of_what_is_not_white_space(text):
    words = split_words(text)
    assert all(text[start:end] == word for word, start, end in words)
    assert "".join(word for word, _, _ in words) == "".join(text.split())


def test_split_words_separates_punctuation():
    assert [word for word, _, _ in split_words("Is it (red)?")] == ["Is", "it", "(", "red", ")", "?"]


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_found_where_they_were_split(text):
    words = split_words(text)
    assert locate_words(text, [word for word, _, _ in words]) == [(start, end) for _, start, end in words]


def test_a_word_that_is_not_in_its_text_is_an_error():
    with pytest.raises(InputError, match="no 'red' in ' apple'"):
        locate_words("the red apple", ["the", "red", "red"])


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), word_tokenizer()], ids=["bytes", "words"])
@pytest.mark.parametrize("last", [True, False])
def test_each_word_gets_its_first_or_last_token(tokenizer, last):
    text = "the horse is unheard-of café."
    spans = locate_words(text, ["the", "horse", "is", "unheard-of", "café", "."])
    ids, positions = align_words(tokenizer, text, spans, last=last)
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    assert ids == tokenizer(text)["input_ids"]
    for (start, end), position in zip(spans, positions, strict=True):
        touching = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]  # the slow way
        assert position == touching[-1 if last else 0]


def test_a_prompt_before_the_words_shifts_nothing():
    tokenizer = byte_tokenizer()
    text, spans = "black table", [(0, 5), (6, 11)]
    prompt = f"Find: {text}\nAnswer:"
    _, positions = align_words(tokenizer, prompt, [(a + 6, b + 6) for a, b in spans], last=True)
    offsets = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    assert [prompt[slice(*offsets[p])].strip()[-1] for p in positions] == ["k", "e"]


def test_a_word_without_a_token_is_minus_one():
    class Deaf:
        def __call__(self, text, **options):
            return {"input_ids": [5, 6], "offset_mapping": [(0, 0), (0, 3)]}

    assert align_words(Deaf(), "abc def", [(0, 3), (4, 7)], last=True) == ([5, 6], [1, -1])


def test_decoders_and_encoders_are_told_apart():
    assert is_decoder(LlamaConfig())
    assert is_decoder(GPT2Config())
    assert not is_decoder(BertConfig())
