"""Every bad input of the engine: one error that says the rule, what was found, and the remedy; nothing changes."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256

import pytest
import torch
from engine_peft import BASES, engine_of, make_adapters, texts
from safetensors.torch import load_file, save_file
from transformers import RobertaConfig, RobertaModel

from adapterhub.adapter import content_hash, describe_base
from adapterhub.engine import Engine
from adapterhub.engine._site import Site
from adapterhub.errors import CapacityError, IncompatibleAdapterError, InputError, IntegrityError
from adapterhub.route import Route


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    return make_adapters("llama", tmp_path_factory.mktemp("bad"))


@pytest.fixture
def engine(adapters):
    with engine_of("llama", adapters, arena_ranks=16) as engine:
        yield engine


FILES = ("adapter_config.json", "adapter_model.safetensors")
CALLS = ("forward", "hidden", "generate")


@pytest.mark.parametrize("call", CALLS)
def test_an_unknown_adapter_is_named_with_the_nearest(engine, call):
    with pytest.raises(InputError) as caught:
        getattr(engine, call)(*texts(2, 5), [Route.to("smal"), Route(("wide", "wid"), (1.0, 1.0))])
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "No adapter 'smal' in this engine (9 adapters). Did you mean `small`?" in lines[0]
    assert "'wid'" in lines[1]
    assert "`wide`" in lines[1]
    assert engine.loaded == ()


@pytest.mark.parametrize("call", ["load", "evict"])
def test_an_unknown_adapter_cannot_be_loaded_or_evicted(engine, call):
    with pytest.raises(InputError, match=r"Did you mean `tokens`\?"):
        getattr(engine, call)("token")


@pytest.mark.parametrize("call", CALLS)
def test_each_row_needs_a_route(engine, call):
    with pytest.raises(InputError, match=r"one route a row\. Found 3 rows and 2 routes"):
        getattr(engine, call)(*texts(3, 5), [Route()] * 2)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (5,)])
@pytest.mark.parametrize("call", CALLS)
def test_an_empty_batch(engine, call, shape):
    ids = torch.zeros(shape, dtype=torch.long)
    with pytest.raises(InputError, match="at least one text"):
        getattr(engine, call)(ids, ids, [Route()] * shape[0])


def test_a_mask_of_another_shape(engine):
    ids, mask = texts(2, 5)
    with pytest.raises(InputError, match=r"Found \(2, 4\)"):
        engine.forward(ids, mask[:, 1:], [Route()] * 2)


def test_all_faults_of_a_batch_are_told_at_once(engine):
    ids, mask = texts(3, 70, side="right")
    mask[0], mask[1, 3] = 0, 0
    ids[2, 0] = 96
    with pytest.raises(InputError) as caught:
        engine.forward(ids, mask, [Route()])
    message = str(caught.value)
    assert "3 rows and 1 routes" in message
    assert "at most 64 tokens. Found 70. Shorten" in message
    assert "from 0 to 95. Found 96" in message
    assert "Row 0 is all padding" in message
    assert "Row 1 has 2 runs" in message


@pytest.mark.parametrize("call", CALLS)
def test_a_text_longer_than_the_context(engine, call):
    with pytest.raises(InputError, match=r"at most 64 tokens\. Found 65"):
        getattr(engine, call)(*texts(1, 65), [Route.to("small")])


@pytest.mark.parametrize("options", [{"max_new_tokens": 5}, {"max_new_tokens": 50}])
def test_a_prompt_that_leaves_no_room_for_the_answer(engine, options):
    with pytest.raises(InputError, match=r"at most 64 in all\. Found 60"):
        engine.generate(*texts(1, 60), [Route.to("small")], **options)
    assert engine.generate(*texts(1, 60), [Route.to("small")], max_new_tokens=4).sequences.shape[1] <= 64


def test_a_roberta_reads_two_tokens_less_than_it_has_positions():
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=96,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=20,
        pad_token_id=1,
    )
    with Engine(RobertaModel(config), model_id="tests/roberta") as engine:
        ids, mask = torch.full((1, 18), 5), torch.ones(1, 18)
        assert engine.hidden(ids, mask, [Route()])[0].shape == (18, 16)
        with pytest.raises(InputError, match=r"at most 18 tokens\. Found 19"):
            engine.hidden(torch.full((1, 19), 5), torch.ones(1, 19), [Route()])


def test_adapters_of_one_batch_that_do_not_fit_together(engine):
    engine.load("small")
    before = engine.loaded
    routes = [Route(("small", "wide"), (0.5, 0.5)), Route.to("pattern")]
    with pytest.raises(CapacityError) as caught:
        engine.forward(*texts(2, 5), routes)
    assert str(caught.value) == (
        "One batch needs adapters of 17 ranks in all but the arena holds 16. "
        "Lower `k` or the batch size, or raise `arena_ranks`."
    )
    assert engine.loaded == before


def test_an_adapter_larger_than_the_arena(adapters):
    with engine_of("llama", adapters, arena_ranks=7) as engine, pytest.raises(CapacityError, match="8 ranks"):
        engine.load("wide")


def test_an_adapter_of_another_base_leaves_the_engine_as_it_was(engine, tmp_path):
    folder = make_adapters("gpt2", tmp_path)["small"]
    engine.add("alien", folder)
    engine.load("small")
    mixed = [Route(("wide", "alien"), (1.0, 1.0))]
    for call in (lambda: engine.load("alien"), lambda: engine.forward(*texts(1, 5), mixed)):
        with pytest.raises(IncompatibleAdapterError):
            call()
        assert engine.loaded == ("small",)
    engine.forward(*texts(1, 5), [Route.to("small")])


def test_a_damaged_file_leaves_the_engine_as_it_was(engine, adapters, tmp_path):
    shutil.copytree(adapters["wide"], tmp_path / "wide")
    weights = tmp_path / "wide" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-9] ^= 1
    weights.write_bytes(data)
    engine.add("damaged", tmp_path / "wide")
    with pytest.raises(IntegrityError):
        engine.load("damaged")
    assert engine.loaded == ()


@pytest.mark.parametrize("host_bytes", [0, 1 << 20], ids=["disk", "host"])
def test_a_name_is_bound_to_its_bytes(adapters, tmp_path, host_bytes):
    engine = engine_of("llama", adapters, arena_ranks=16, host_bytes=host_bytes)
    folder = tmp_path / "changing"
    shutil.copytree(adapters["small"], folder)
    engine.add("changing", folder)
    engine.load("changing")
    engine.evict("changing")
    shutil.rmtree(folder)
    shutil.copytree(adapters["wide"], folder)
    if host_bytes:  # the old bytes are still there
        old, small = (engine.forward(*texts(1, 5), [Route.to(name)])[0] for name in ("changing", "small"))
        assert torch.equal(old, small)
    else:
        with pytest.raises(IntegrityError):
            engine.forward(*texts(1, 5), [Route.to("changing")])
    engine.add("changing", folder)  # saying it again accepts the new bytes
    ids, mask = texts(1, 5)
    mine, peer = (engine.forward(ids, mask, [Route.to(name)])[0] for name in ("changing", "wide"))
    torch.testing.assert_close(mine, peer, atol=1e-6, rtol=0)
    engine.close()


def spoil(fault, folder, monkeypatch):
    """What goes wrong with an adapter between its listing and its use, and the error that tells of it."""
    if fault == "removed":
        shutil.rmtree(folder)
        return IntegrityError, "An adapter is a folder"
    if fault == "not a number":
        tensors = load_file(folder / "adapter_model.safetensors")
        next(iter(tensors.values()))[0, 0] = float("nan")
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapterhub.json").unlink()
        seal_anyway(folder)
        return IncompatibleAdapterError, "NaN"
    write = Site.write

    def half_way(self, name, start, delta):
        if name == "spoiled" and "1" in self.name:
            raise MemoryError("no more memory")
        write(self, name, start, delta)

    monkeypatch.setattr(Site, "write", half_way)
    return MemoryError, "no more memory"


def seal_anyway(folder):
    """A seal that fits the files, as a careless publisher would write it."""
    files = {name: sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    record = {"format": 1, "base_model": "tests/llama", "fingerprint": describe_base(BASES["llama"]()).fingerprint}
    (folder / "adapterhub.json").write_text(json.dumps(record | {"files": files}))


@pytest.mark.parametrize("fault", ["removed", "not a number", "half way"])
def test_an_adapter_that_goes_bad_fails_alone(engine, adapters, tmp_path, monkeypatch, fault):
    prompt = texts(1, 5)[0][0]
    expected = engine.generate(*texts(1, 5), [Route.to("small")], max_new_tokens=12, min_new_tokens=12)
    folder = shutil.copytree(adapters["wide"], tmp_path / "spoiled")
    engine.add("spoiled", folder)
    error, message = spoil(fault, folder, monkeypatch)
    ranks, loaded = engine.stats.arena_bytes, engine.loaded
    for _ in range(2):
        with pytest.raises(error, match=message):
            engine.forward(*texts(2, 5), [Route.to("spoiled"), Route.to("small")])
    assert (engine.stats.arena_bytes, engine.loaded) == (ranks, loaded)
    with engine.batcher() as batcher:
        good, bad = (
            batcher.submit(prompt, Route.to(name), max_new_tokens=12, min_new_tokens=12)
            for name in ("small", "spoiled")
        )
        assert good.result(30) == expected.sequences[0, 5:].tolist()
        with pytest.raises(error, match=message):
            bad.result(30)
    assert (engine.stats.arena_bytes, engine.loaded) == (ranks, loaded)


def test_a_name_that_is_added_again_is_replaced(engine, adapters):
    ids, mask = texts(1, 5)
    engine.add("x", adapters["small"])
    engine.forward(ids, mask, [Route.to("x")])
    engine.add("x", adapters["neck"])
    mine, peer = (engine.forward(ids, mask, [Route.to(name)])[0] for name in ("x", "neck"))
    torch.testing.assert_close(mine, peer, atol=1e-6, rtol=0)


def test_adding_the_same_bytes_again_keeps_them_loaded(engine, adapters):
    engine.load("small")
    sha256 = content_hash(adapters["small"])
    engine.add("small", adapters["small"], sha256=sha256)
    assert engine.loaded == ("small",)
    engine.add("small", adapters["small"])  # without the hash, the folder may have changed
    assert engine.loaded == ()


def test_a_content_hash_that_is_not_the_folders(engine, adapters):
    engine.add("pinned", adapters["small"], sha256="0" * 64)
    with pytest.raises(IntegrityError):
        engine.load("pinned")


def test_a_folder_that_is_not_there(engine, tmp_path):
    with pytest.raises(InputError, match="'x' should exist"):
        engine.add("x", tmp_path / "nowhere")
    assert "x" not in engine.names


def test_a_classifying_adapter_does_not_generate(engine):
    with pytest.raises(InputError, match="Found sequence, tokens first in a route"):
        engine.generate(*texts(3, 5), [Route.to("tokens"), Route.to("sequence"), Route()])


def test_a_base_without_a_language_model_head():
    with engine_of("bert", {}) as engine:
        with pytest.raises(InputError, match="Found none in BertModel"):
            engine.forward(*texts(1, 5), [Route()])
        with pytest.raises(InputError, match="Only a base with an LM head generates"):
            engine.generate(*texts(1, 5), [Route()])


@pytest.mark.parametrize("ranks", [0, -3])
def test_an_arena_without_ranks(ranks):
    with pytest.raises(InputError, match=f"Found {ranks}"):
        Engine(BASES["llama"](), arena_ranks=ranks)


def test_a_closed_engine(adapters):
    engine = engine_of("llama", adapters)
    engine.close()
    engine.close()
    for call in (
        lambda: engine.forward(*texts(1, 5), [Route()]),
        lambda: engine.generate(*texts(1, 5), [Route()]),
        lambda: engine.load("small"),
        lambda: engine.add("small", adapters["small"]),
    ):
        with pytest.raises(InputError, match="closed engine"):
            call()
