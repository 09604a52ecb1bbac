"""Bases of other shapes: popular decoders of transformers, encoder-decoders, state space models."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from conftest import tiny_mamba, tiny_t5
from engine_peft import draw, engine_of, lora, make_methods, quiet, save
from peft import IA3Config, LNTuningConfig, LoraConfig, PeftModel, get_peft_model

from adapterhub.adapter import describe_base, seal
from adapterhub.engine import Engine
from adapterhub.errors import InputError
from adapterhub.route import Route

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}
GATED = {**SHAPE, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
DECODERS: dict[str, dict[str, object]] = {
    "Mistral": GATED,
    "Qwen2": GATED,
    "Qwen3": GATED,
    "Gemma": GATED,
    "Gemma2": {**GATED, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "Gemma3": {**GATED, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "Phi3": GATED,
    "GPTNeoX": {**SHAPE, "intermediate_size": 64},
    "OPT": {**SHAPE, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "Bloom": {**SHAPE, "n_layer": 2, "n_head": 4},
    "Falcon": SHAPE,
    "GPTJ": {**SHAPE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    "Phi": {**SHAPE, "intermediate_size": 64},
    "Olmo2": {**SHAPE, "intermediate_size": 64},
    "StableLm": {**GATED},
    "Granite": GATED,
    "SmolLM3": GATED,
    "Mixtral": {**GATED, "num_local_experts": 4},
    "FalconMamba": {**SHAPE, "state_size": 4},
    "Mamba2": {**SHAPE, "state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
}
# Where not every linear is one that PEFT adapts: it refuses a state space model's `out_proj`, and experts are fused.
TARGETS = {"Mixtral": ["q_proj", "o_proj"], "FalconMamba": ["in_proj", "x_proj"], "Mamba2": ["in_proj"]}
# Of these the default targets are tried as well, which PEFT knows.
WITH_DEFAULTS = ("Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3", "GPTNeoX", "OPT", "Bloom", "Falcon", "Phi")
OFTEN = ("Mistral", "Qwen3", "Gemma2", "Gemma3", "Phi3", "GPTNeoX", "OPT", "Bloom", "Falcon", "Mixtral", "Mamba2")


def decoder(name):
    config = {"Gemma3": "Gemma3TextConfig"}.get(name, f"{name}Config")
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, config)(**DECODERS[name])).eval()


def adapted(name, folder, config):
    """An adapter for this decoder, saved and sealed, with random values."""
    with quiet():
        model = get_peft_model(decoder(name), config, autocast_adapter_dtype=False)
        draw(model, 3)
        model.save_pretrained(folder, save_embedding_layers=False)
    seal(folder, describe_base(decoder(name), f"tests/{name}"))
    with quiet():
        return PeftModel.from_pretrained(decoder(name), folder, autocast_adapter_dtype=False).eval()


def lora_at(targets, **options):
    return LoraConfig(r=5, target_modules=targets, task_type="CAUSAL_LM", **options)


def equals_peft(tmp_path, name, config):
    peer = adapted(name, tmp_path, config)
    lengths = [9, 4, 6]
    ids = torch.randint(2, 96, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(9) >= 9 - torch.tensor(lengths)[:, None]).long()
    with Engine(decoder(name), model_id=f"tests/{name}") as engine:
        engine.add("a", tmp_path)
        routes = [Route.to("a"), Route(), Route.to("a")]
        answers = engine.forward(ids * mask, mask, routes)
        tokens = engine.generate(ids * mask, mask, routes, max_new_tokens=5, min_new_tokens=5).sequences
    for row, (route, length) in enumerate(zip(routes, lengths, strict=True)):
        alone = ids[row : row + 1, 9 - length :]
        model = peer if route.adapters else decoder(name)
        with torch.no_grad():
            torch.testing.assert_close(answers[row][9 - length :], model(input_ids=alone).logits[0], atol=1e-5, rtol=0)
            theirs = model.generate(
                input_ids=alone, attention_mask=torch.ones_like(alone), max_new_tokens=5, min_new_tokens=5
            )
        assert tokens[row, 9:].tolist() == theirs[0, length:].tolist()


@pytest.mark.parametrize("name", OFTEN)
def test_lora_on_a_popular_decoder_equals_peft(tmp_path, name):
    equals_peft(tmp_path, name, lora_at(TARGETS.get(name, "all-linear")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "targets"),
    [(name, TARGETS.get(name, "all-linear")) for name in DECODERS if name not in OFTEN]
    + [(name, None) for name in WITH_DEFAULTS],
)
def test_lora_on_another_decoder_equals_peft(tmp_path, name, targets):
    equals_peft(tmp_path, name, lora_at(targets))


# Fused projections, norms whose weight is what is added to one, norms with a bias.
@pytest.mark.parametrize("name", ["Qwen3", "Gemma2", "Bloom", "Falcon"])
@pytest.mark.parametrize(
    "config",
    [
        lora_at("all-linear", use_dora=True),
        IA3Config(task_type="CAUSAL_LM"),
        LNTuningConfig(task_type="CAUSAL_LM"),
        lora_at("all-linear", modules_to_save=["norm"]),
    ],
    ids=["dora", "ia3", "norms", "lora-norms"],
)
def test_other_methods_at_peft_s_default_targets_equal_peft(tmp_path, name, config):
    equals_peft(tmp_path, name, copy.deepcopy(config))


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory):
    """A T5 with an adapter at encoder and decoder."""
    folders = make_methods("t5", tmp_path_factory.mktemp("seq2seq"), ["lora"], rank=5)
    with engine_of("t5", folders) as engine:
        yield engine


ROUTES = [Route.to("lora"), Route(), Route(("lora",), (-0.5,))]


def padded(*lengths):
    """Rows of these lengths, padded on the left."""
    ids = torch.randint(2, 96, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(4))
    mask = (torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


def test_a_decoder_of_its_own_starts_with_its_start_token(seq2seq):
    ids, mask = padded(7, 3, 5)
    answers = seq2seq.forward(ids, mask, ROUTES)
    given = seq2seq.forward(ids, mask, ROUTES, decoder_input_ids=torch.zeros(3, 1, dtype=torch.long))
    assert [tuple(answer.shape) for answer in answers] == [(1, 96)] * 3
    assert all(torch.equal(*pair) for pair in zip(answers, given, strict=True))


def test_answers_stand_at_the_tokens_of_the_decoder_whatever_the_padding_of_the_encoder(seq2seq):
    ids, mask = padded(7, 3, 5)
    decoded = torch.randint(2, 96, (3, 4), generator=torch.Generator().manual_seed(5))
    answers = seq2seq.forward(ids, mask, ROUTES, decoder_input_ids=decoded)
    with torch.no_grad():
        base = tiny_t5()(input_ids=ids[1:2, 4:], decoder_input_ids=decoded[1:2]).logits
    torch.testing.assert_close(answers[1], base[0], atol=1e-5, rtol=0)
    for row in (0, 2):
        alone = ids[row : row + 1, 7 - int(mask[row].sum()) :]
        answer = seq2seq.forward(
            alone, torch.ones_like(alone), ROUTES[row : row + 1], decoder_input_ids=decoded[row : row + 1]
        )
        torch.testing.assert_close(answers[row], answer[0], atol=1e-5, rtol=0)


def test_what_follows_in_the_decoder_changes_nothing_before_it(seq2seq):
    ids, mask = padded(7, 3, 5)
    decoded = torch.randint(2, 96, (3, 4), generator=torch.Generator().manual_seed(5))
    long = seq2seq.forward(ids, mask, ROUTES, decoder_input_ids=decoded)
    short = seq2seq.forward(ids, mask, ROUTES, decoder_input_ids=decoded[:, :2])
    for one, other in zip(long, short, strict=True):
        torch.testing.assert_close(one[:2], other, atol=1e-6, rtol=0)


def test_hidden_states_of_an_encoder_decoder_are_its_encoders(seq2seq):
    ids, mask = padded(7, 3, 5)
    hidden = seq2seq.hidden(ids, mask, ROUTES)
    with torch.no_grad():
        base = tiny_t5().encoder(input_ids=ids[1:2, 4:]).last_hidden_state
    assert [tuple(row.shape) for row in hidden] == [(7, 32)] * 3
    torch.testing.assert_close(hidden[1][4:], base[0], atol=1e-5, rtol=0)
    assert not torch.allclose(hidden[0], seq2seq.hidden(ids, mask, [Route()] * 3)[0], atol=1e-3)


@pytest.mark.parametrize(
    ("decoded", "message"),
    [
        (torch.zeros(2, 3), r"with the batch's 3 rows and at least one token\. Found \(2, 3\)"),
        (torch.zeros(3, 0), r"Found \(3, 0\)"),
        (torch.zeros(3), r"Found \(3,\)"),
        (torch.full((3, 2), 96), "from 0 to 95. Found 96"),
        (torch.full((3, 2), -1), "from 0 to 95. Found -1"),
    ],
)
def test_bad_decoder_inputs_are_refused(seq2seq, decoded, message):
    ids, mask = padded(7, 3, 5)
    with pytest.raises(InputError, match=message):
        seq2seq.forward(ids, mask, ROUTES, decoder_input_ids=decoded.long())


def test_a_base_without_a_decoder_of_its_own_takes_no_decoder_inputs():
    ids, mask = padded(3, 2)
    with engine_of("llama", {}) as engine, pytest.raises(InputError, match="Only an encoder-decoder takes"):
        engine.forward(ids, mask, [Route()] * 2, decoder_input_ids=ids)


def bart():
    """An encoder-decoder whose positions are learned and limited."""
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=96,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=16,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
        decoder_start_token_id=1,
        forced_eos_token_id=None,
    )
    return transformers.BartForConditionalGeneration(config).eval()


def test_prompts_of_an_encoder_with_learned_positions_begin_at_its_first_position():
    ids, mask = padded(15, 3, 9)
    with Engine(bart(), model_id="tests/bart") as engine:
        # Neither side of it is longer than the context, though both together are.
        tokens = engine.generate(ids, mask, [Route()] * 3, max_new_tokens=10, min_new_tokens=10).sequences
        with pytest.raises(InputError, match="at most 16"):
            engine.generate(ids, mask, [Route()] * 3, max_new_tokens=17)
        with pytest.raises(InputError, match="The decoder reads at most 16 tokens"):
            engine.forward(ids, mask, [Route()] * 3, decoder_input_ids=torch.ones(3, 17, dtype=torch.long))
    for row, length in enumerate([15, 3, 9]):
        alone = ids[row : row + 1, 15 - length :]
        expected = bart().generate(alone, attention_mask=torch.ones_like(alone), max_new_tokens=10, min_new_tokens=10)
        assert tokens[row].tolist() == expected[0].tolist()


def test_a_state_space_model_does_not_read_the_padding_before_a_prompt(tmp_path):
    folders = {"a": save("mamba", tmp_path, lora("mamba", ["in_proj", "x_proj"], 4), seed=1)}
    ids, mask = padded(9, 2, 5)
    routes = [Route.to("a"), Route.to("a"), Route()]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "output_scores": True}
    with engine_of("mamba", folders) as engine:
        together = engine.generate(ids, mask, routes, **options)
        for row, length in enumerate([9, 2, 5]):
            alone = ids[row : row + 1, 9 - length :]
            one = engine.generate(alone, torch.ones_like(alone), routes[row : row + 1], **options)
            assert together.sequences[row, 9:].tolist() == one.sequences[0, length:].tolist()
            torch.testing.assert_close(together.scores[0][row], one.scores[0][0], atol=1e-5, rtol=0)


def test_bases_without_learned_positions_have_no_context():
    long = torch.randint(2, 96, (1, 200), generator=torch.Generator().manual_seed(0))
    for kind, model in (("t5", tiny_t5()), ("mamba", tiny_mamba())):
        with engine_of(kind, {}) as engine, torch.no_grad():
            (answer,) = engine.forward(long, torch.ones_like(long), [Route()])
            inputs = {"decoder_input_ids": torch.zeros(1, 1, dtype=torch.long)} if kind == "t5" else {}
            torch.testing.assert_close(answer, model(input_ids=long, **inputs).logits[0], atol=1e-5, rtol=0)
