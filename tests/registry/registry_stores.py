"""The two kinds of registry for tests that hold for both, and an encoder that hears nothing but hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adapterhub.registry import Registry

KINDS = ("folder", "sqlite")


def place_of(kind: str, root: Path) -> str:
    """Where a registry of a kind lies that has all its files below a folder."""
    return str(root) if kind == "folder" else f"sqlite:///{root}/tasks.db"


def open_at(kind: str, root: str | Path) -> Registry:
    """A registry of a kind; the folder is made."""
    Path(root).mkdir(parents=True, exist_ok=True)
    return Registry(place_of(kind, Path(root)))


class HashEncoder:
    """Each text's vector follows from its hash; every text asked for is noted."""

    dimension = 8

    def __init__(self, fingerprint: str = "fake", scale: float = 1.0) -> None:
        self.fingerprint, self.scale = fingerprint, scale
        self.heard: list[str] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.heard += texts
        return np.stack([self.one(text) for text in texts])

    def one(self, text: str) -> np.ndarray:
        row = np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype=np.int32).astype(np.float32)
        return (self.scale * row / np.linalg.norm(row)).astype(np.float32)

    def stored(self, text: str) -> np.ndarray:
        """The vector as the catalogue gives it back."""
        return self.one(text).astype(np.float16).astype(np.float32)
