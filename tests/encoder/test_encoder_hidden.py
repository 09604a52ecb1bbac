from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import tiny_llama

from adapterhub.encoder import HiddenStateEncoder
from adapterhub.errors import InputError


class Letters:
    """One token a letter; no pad token."""

    def __call__(self, texts, truncation, max_length):
        assert truncation
        return {
            "input_ids": [[3 + ord(letter) % 90 for letter in text if letter != "~"][:max_length] for text in texts]
        }


@pytest.fixture(params=["llama", "gpt2", "bert"])
def model(request):
    return request.getfixturevalue(request.param)


def test_equals_the_mean_of_each_text_alone(model):
    texts = ["short", "a much longer text than that", "mid length"]
    encoded = HiddenStateEncoder(model, Letters()).encode(texts)
    for row, text in zip(encoded, texts, strict=True):
        ids = torch.tensor(Letters()([text], True, 64)["input_ids"])
        with torch.no_grad():
            mean = model.base_model(input_ids=ids).last_hidden_state[0].mean(dim=0).numpy()
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(encoded, axis=1), 1, atol=1e-6)
    assert encoded.dtype == np.float32
    assert encoded.shape == (3, model.config.hidden_size)


def test_order_and_batches_do_not_matter(llama):
    texts = [f"text number {number} " + "x" * (number % 7) for number in range(70)]
    together = HiddenStateEncoder(llama, Letters()).encode(texts)
    reversed_ = HiddenStateEncoder(llama, Letters()).encode(texts[::-1])
    np.testing.assert_allclose(together, reversed_[::-1], atol=1e-6)


def test_texts_are_cut_at_the_maximum_length(llama):
    encoder = HiddenStateEncoder(llama, Letters(), max_length=4)
    np.testing.assert_array_equal(*encoder.encode(["abcd and more", "abcd"]))


def test_fingerprint_tells_models_and_settings_apart(llama):
    encoder = HiddenStateEncoder(llama, Letters())
    assert encoder.fingerprint == HiddenStateEncoder(copy.deepcopy(llama), Letters()).fingerprint
    others = [
        HiddenStateEncoder(tiny_llama(seed=1), Letters()),
        HiddenStateEncoder(llama, Letters(), max_length=8),
        HiddenStateEncoder(tiny_llama().to(torch.bfloat16), Letters()),
    ]
    assert len({encoder.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_bad_input_is_an_error(llama):
    encoder = HiddenStateEncoder(llama, Letters())
    with pytest.raises(InputError, match="visible character"):
        encoder.encode(["  "])
    with pytest.raises(InputError, match="at least one token"):
        encoder.encode(["fine", "~"])
    for length in (0, 65):
        with pytest.raises(InputError, match="between 1 and the model's 64"):
            HiddenStateEncoder(llama, Letters(), max_length=length)


def test_nan_of_the_model_is_an_error():
    broken = tiny_llama()
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="finite"):
        HiddenStateEncoder(broken, Letters()).encode(["text"])
