"""The ear: text to vector, for routing.

An encoder is frozen, and its fingerprint says exactly which one it is: vectors of different fingerprints never mix.
"""

from adapterhub.encoder._cache import check_texts
from adapterhub.encoder._hidden import HiddenStateEncoder
from adapterhub.encoder._protocol import Encoder
from adapterhub.encoder._sentence import SentenceEncoder

__all__ = ["Encoder", "HiddenStateEncoder", "SentenceEncoder", "check_texts"]
