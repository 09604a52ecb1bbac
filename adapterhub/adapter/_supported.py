"""The methods that are read, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from adapterhub.adapter._bottleneck import BOTTLENECK
from adapterhub.adapter._ia3 import IA3
from adapterhub.adapter._ln_tuning import LN_TUNING
from adapterhub.adapter._lora import LORA
from adapterhub.adapter._method import Method
from adapterhub.errors import did_you_mean

__all__ = ["CONVERTIBLE", "METHODS", "method_fault"]

METHODS: Mapping[str, Method] = MappingProxyType(
    {"BOTTLENECK": BOTTLENECK, "IA3": IA3, "LN_TUNING": LN_TUNING, "LORA": LORA}
)
# Those whose layers in PEFT 0.21 answer True to `supports_lora_conversion`.
CONVERTIBLE = frozenset(
    {
        "C3A",
        "DELORA",
        "FOURIERFT",
        "GRALORA",
        "LOHA",
        "LOKR",
        "MISS",
        "PSOFT",
        "RANDLORA",
        "TINYLORA",
        "UNILORA",
        "VBLORA",
        "VERA",
        "WAVEFT",
    }
)


def method_fault(found: object) -> str | None:
    """A line where a `peft_type` is not read, which says what can be done; None where it is.

    Args:
        found: What the file holds.
    """
    if not isinstance(found, str):
        advice = ""
    elif found in METHODS:
        return None
    elif found in CONVERTIBLE:
        advice = " PEFT can turn it into LORA: convert it with `adapterhub convert FOLDER OUT`."
    elif found in PEFT_TYPE_TO_CONFIG_MAPPING:
        advice = " PEFT cannot convert it into one of them. Train the task again with one of them."
    else:
        advice = did_you_mean(found, METHODS)
    return f"peft_type should be one of {', '.join(METHODS)}. Found {found!r}.{advice}"
