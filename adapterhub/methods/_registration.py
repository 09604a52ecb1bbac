"""How our methods join PEFT from outside."""

from __future__ import annotations

from peft import mapping

from adapterhub.methods._config import BottleneckConfig, HubPeftType
from adapterhub.methods._model import BottleneckModel

__all__ = ["register"]


def register() -> None:
    """Make PEFT know `peft_type: BOTTLENECK`; safe to call again.

    PEFT's `register_peft_method` takes only members of its own closed enum, so the three mappings it would fill are
    filled here. The prefix is the method's lower-case name with an underscore, as transformers' PEFT integration
    assumes.
    """
    method = HubPeftType.BOTTLENECK
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING[method] = BottleneckConfig
    mapping.PEFT_TYPE_TO_TUNER_MAPPING[method] = BottleneckModel
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING[method] = BottleneckModel.prefix
