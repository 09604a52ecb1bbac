"""Tiny random models and a word tokenizer, made once a session; no network, no downloads."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

torch.set_num_threads(1)


def tiny_llama(seed: int = 0, layers: int = 2, hidden: int = 32, vocab: int = 96) -> LlamaForCausalLM:
    """A random Llama of two layers; `pad` is 0, `eos` 1."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


def tiny_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """A random GPT-2 of two layers, whose linears are Conv1D."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, pad_token_id=0, eos_token_id=1, bos_token_id=1
    )
    return GPT2LMHeadModel(config).eval()


def tiny_bert(seed: int = 0) -> BertModel:
    """A random BERT of two layers with its pooler."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    return BertModel(config).eval()


def tiny_t5(seed: int = 0) -> T5ForConditionalGeneration:
    """A random T5 of two layers on either side; the decoder starts with `pad`, 0."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=96,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config).eval()


def tiny_mamba(seed: int = 0) -> MambaForCausalLM:
    """A random Mamba of two layers: a state in the place of attention."""
    torch.manual_seed(seed)
    config = MambaConfig(
        vocab_size=96,
        hidden_size=32,
        state_size=4,
        num_hidden_layers=2,
        conv_kernel=4,
        expand=2,
        time_step_rank=4,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
    )
    return MambaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    """Shared and never changed: a test that wraps or trains takes `tiny_llama()` of its own."""
    return tiny_llama()


@pytest.fixture(scope="session")
def gpt2() -> PreTrainedModel:
    """Shared and never changed."""
    return tiny_gpt2()


@pytest.fixture(scope="session")
def bert() -> PreTrainedModel:
    """Shared and never changed."""
    return tiny_bert()


@pytest.fixture(scope="session")
def t5() -> PreTrainedModel:
    """Shared and never changed."""
    return tiny_t5()


@pytest.fixture(scope="session")
def mamba() -> PreTrainedModel:
    """Shared and never changed."""
    return tiny_mamba()
