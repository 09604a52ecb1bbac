"""Train, validation and test rows that share no key."""

from __future__ import annotations

import random
from collections.abc import Callable

Row = dict[str, object]
Splits = dict[str, list[Row]]
Make = Callable[[random.Random], tuple[str, Row]]
DRAWS = 40  # draws for each row wanted before the generator counts as dry


def split_of(key: str, share: float = 0.08) -> str:
    """The split that a key belongs to, the same in every run: `share` of the keys each to test and validation."""
    place = random.Random(f"split:{key}").random()
    return "test" if place < share else "validation" if place < 2 * share else "train"


def generated(
    make: Make, *, train: int, seed: int, test: int = 300, place: Callable[[str], str] | None = None
) -> Splits:
    """Rows drawn from a generator; a key (the bare question) is in one split only, an input occurs once.

    Args:
        make: Draws one row and its key.
        train: Rows to train on; fewer when the generator runs dry.
        seed: Seed of the draw.
        test: Rows each of validation and test.
        place: The split of a key; by default 8 % each go to validation and test.
    """
    draw = random.Random(seed)
    wanted = {"train": train, "validation": test, "test": test}
    splits: Splits = {name: [] for name in wanted}
    seen: set[object] = set()
    for _ in range(DRAWS * (train + 2 * test)):
        key, row = make(draw)
        split = (place or split_of)(key)
        if row["input"] in seen or len(splits[split]) >= wanted[split]:
            continue
        seen.add(row["input"])
        splits[split].append(row)
        if all(len(splits[name]) == wanted[name] for name in wanted):
            break
    return splits
