"""A slow reference for indexes, and rows and queries to try them on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapterhub.catalog import BitIndex, ExactIndex, FaissIndex, Queries, Rows, Typical, VectorIndex, building

WIDTH, GROUPS = 12, 4


def some_rows(random: np.random.Generator, count: int, width: int = WIDTH, *, whole: bool = False) -> Rows:
    """Rows; of whole numbers they make many ties."""
    if whole:
        linear = random.integers(-1, 2, (count, width)).astype(np.float16)
        offset = random.integers(-1, 2, count).astype(np.float32)
    else:
        linear = random.standard_normal((count, width)).astype(np.float16)
        offset = random.standard_normal(count).astype(np.float32)
    return Rows(linear, random.integers(0, GROUPS, count).astype(np.int32), offset)


def some_queries(random: np.random.Generator, count: int, width: int = WIDTH, *, whole: bool = False) -> Queries:
    if whole:
        parts = random.integers(-1, 2, (count, width)), random.integers(-1, 2, (count, GROUPS))
    else:
        parts = random.standard_normal((count, width)), random.standard_normal((count, GROUPS))
    return Queries(*(part.astype(np.float64) for part in parts))


class ByHand:
    """Rows in a dict, scored one at a time."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[np.ndarray, int, float]] = {}

    def add(self, keys: np.ndarray, rows: Rows) -> None:
        for key, linear, group, offset in zip(keys.tolist(), rows.linear, rows.group, rows.offset, strict=True):
            self.rows[key] = (linear.astype(np.float64), int(group), float(offset))

    def remove(self, keys: np.ndarray) -> None:
        for key in keys.tolist():
            del self.rows[key]

    def search(self, queries: Queries, k: int, keys: np.ndarray | None = None) -> list[list[tuple[int, float]]]:
        among = self.rows if keys is None else {key: self.rows[key] for key in keys.tolist() if key in self.rows}
        found = []
        for query, groups in zip(queries.linear, queries.groups, strict=True):
            scores = {
                key: float((query * linear).sum()) + float(groups[group]) + offset
                for key, (linear, group, offset) in among.items()
            }
            found.append(sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:k])
        return found


def agrees(index: VectorIndex, hand: ByHand, queries: Queries, k: int, keys: np.ndarray | None = None) -> None:
    """The same keys in the same order, with scores of the same bits."""
    assert len(index) == len(hand.rows)
    found = index.search(queries, k, keys)
    assert [list(zip(some.tolist(), scores.tolist(), strict=True)) for some, scores in found] == hand.search(
        queries, k, keys
    )


def exact(folder: Path, keys: np.ndarray, rows: Rows) -> VectorIndex:
    index = ExactIndex(rows.linear.shape[1])
    index.add(keys, rows)
    return index


def bits(folder: Path, keys: np.ndarray, rows: Rows) -> BitIndex:
    order = np.argsort(keys)
    keys, rows = keys[order], rows.take(order)
    size = max(1, len(keys) // 3)
    blocks = [(keys[at : at + size], rows.take(slice(at, at + size))) for at in range(0, len(keys), size)]
    with building(folder, 10):
        BitIndex.build(folder, blocks, rows, Typical(np.ones(rows.linear.shape[1])), seq=7, fingerprint="test")
    return BitIndex.open(folder)


def graphs(folder: Path, keys: np.ndarray, rows: Rows) -> FaissIndex:
    """Written and read again."""
    folder.mkdir(exist_ok=True)
    FaissIndex(keys, rows).save(folder / "graphs")
    return FaissIndex.open(folder / "graphs")


FACTORIES = {"exact": exact, "bits": bits, "faiss": graphs}


SPREAD = np.sqrt(1 + 8 / np.arange(1, 65))  # like the square roots of 1 + psi: few directions carry the tasks


def clustered(seed: int, count: int) -> tuple[np.ndarray, Rows, Queries]:
    """Tasks in clusters, with different numbers of examples: means, rows and queries of a two-covariance model."""
    random = np.random.default_rng(seed)
    psi = SPREAD**2 - 1
    centres = random.standard_normal((count // 100, 64))
    mixed = 0.7 * centres[random.integers(0, len(centres), count)] + 0.7 * random.standard_normal((count, 64))
    means = mixed * np.sqrt(psi)
    group = random.choice([0, 2, 5, 10, 40], count)
    n = group[:, None] / 2
    variance = 1 + psi / (n * psi + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        noisy = means + np.where(n, random.standard_normal((count, 64)) / np.sqrt(n), 0)
    linear = (n * psi / (n * psi + 1) * noisy / variance).astype(np.float16)
    offset = -0.5 * ((linear.astype(float) ** 2 * variance) + np.log(variance / (1 + psi))).sum(axis=1)
    asked = random.integers(0, count, 60)
    queries = means[asked] + random.standard_normal((60, 64))
    groups = np.stack(
        [-0.5 * (queries**2 * (1 / (1 + psi / (g / 2 * psi + 1)) - 1 / (1 + psi))).sum(axis=1) for g in range(41)], 1
    )
    return (
        np.arange(count) * 3,
        Rows(linear, group.astype(np.int32), offset.astype(np.float32)),
        Queries(queries, groups),
    )


def recall(found, expected, k=10):
    pairs = zip(found, expected, strict=True)
    return np.mean([len(np.intersect1d(some[0][:k], others[0][:k])) / k for some, others in pairs])
