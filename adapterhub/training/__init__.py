"""The workshop: trains one adapter for each task with PEFT, and leaves a sealed PEFT folder behind."""

from __future__ import annotations

from adapterhub.training._adapt import linear_targets
from adapterhub.training._base import base_id, is_decoder, load_tokenizer
from adapterhub.training._checkpoint import Evaluation
from adapterhub.training._encode import encode_prompt
from adapterhub.training._examples import Example, check_rows, data_error
from adapterhub.training._loop import DivergedError
from adapterhub.training._meta_init import MetaInit, meta_init
from adapterhub.training._quantised import check_quantisation, describe_float, quantising
from adapterhub.training._result import FitResult
from adapterhub.training._rows import DataSource, read_rows
from adapterhub.training._sharing import Sharing
from adapterhub.training._trainer import Trainer
from adapterhub.training._words import align_words, locate_words, split_words

__all__ = [
    "DataSource",
    "DivergedError",
    "Evaluation",
    "Example",
    "FitResult",
    "MetaInit",
    "Sharing",
    "Trainer",
    "align_words",
    "base_id",
    "check_quantisation",
    "check_rows",
    "data_error",
    "describe_float",
    "encode_prompt",
    "is_decoder",
    "linear_targets",
    "load_tokenizer",
    "locate_words",
    "meta_init",
    "quantising",
    "read_rows",
    "split_words",
]
