"""Tiny bases with tokenizers on disk, and easy tasks that they can learn in seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path

from conftest import tiny_bert, tiny_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from adapterhub.registry import Registry
from adapterhub.task import Task

COLOURS = ["red", "green", "blue", "black"]
THINGS = ["apple", "stone", "river", "table", "glove", "horse"]
SENTENCES = [f"The {thing} is {colour}." for thing in THINGS for colour in COLOURS] + ["Answer: yes no maybe"]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without a prefix space, as the embedded base has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<pad>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", bos_token="<end>")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words between [CLS] and [SEP]."""
    words = [*COLOURS, *THINGS, "the", "is", ".", "answer", ":", "yes", "no"]
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def llama_base(folder: Path) -> Path:
    """A tiny decoder with its tokenizer and its note."""
    model = tiny_llama(vocab=340, hidden=64)
    model.lm_head.weight.data *= 20  # a fresh head's logits stay within one of each other, whatever the adapter does
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "adapterhub.json").write_text(json.dumps({"id": "tests/tiny-llama"}))
    return folder


def registry_on(base: Path, root: Path) -> Registry:
    """An empty registry whose tasks are on a base."""
    root.mkdir()
    (root / "_base").symlink_to(base, target_is_directory=True)
    return Registry(root)


def bert_base(folder: Path) -> Path:
    """A tiny encoder with its tokenizer; its id is the folder's name."""
    tiny_bert().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def card(head: str = "generation", **fields: object) -> Task:
    """A card on the tiny decoder."""
    defaults: dict[str, object] = {"description": "Name the colour.", "base_model": "_base", "head": head}
    if head == "classification":
        defaults["labels"] = COLOURS
    if head == "token-classification":
        defaults["labels"] = ["O", "B-COLOUR"]
    if head == "generation":
        defaults |= {"prompt": "{text}\nAnswer:", "max_new_tokens": 8}
    return Task.from_dict(str(fields.pop("name", f"tests/{head}")), defaults | fields)


def rows(head: str, count: int = 120, seed: int = 0) -> list[dict[str, object]]:
    """Rows of an easy rule: which colour the sentence names."""
    generator = random.Random(seed)
    found: list[dict[str, object]] = []
    for number in range(count):
        thing, colour = generator.choice(THINGS), generator.choice(COLOURS)
        text = f"{number}: the {thing} is {colour}."
        words = [str(number), ":", "the", thing, "is", colour, "."]
        if head == "token-classification":
            found.append({"tokens": words, "tags": ["B-COLOUR" if word in COLOURS else "O" for word in words]})
        else:
            answer = {
                "generation": {"output": colour},
                "classification": {"label": colour},
                "regression": {"value": 10.0 * COLOURS.index(colour)},
            }[head]
            found.append({"input": text, **answer})
    return found
