"""The ear: text to vector, for routing.

An encoder is frozen, and its fingerprint says exactly which one it is: vectors of different fingerprints are never compared.
"""

from adapterhub.encoder._hidden import HiddenStateEncoder
from adapterhub.encoder._protocol import Encoder
from adapterhub.encoder._sentence import SentenceEncoder

__all__ = ["Encoder", "HiddenStateEncoder", "SentenceEncoder"]
