"""Batches drawn by hypothesis: rows of any length and padding, each with a route of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from adapterhub.engine import Engine
from adapterhub.route import Route


@dataclass(frozen=True)
class Case:
    """A batch and, for an encoder-decoder, what its decoder reads.

    Args:
        input_ids: (rows, T).
        attention_mask: (rows, T).
        routes: One a row.
        decoder_input_ids: (rows, n).
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    routes: list[Route]
    decoder_input_ids: torch.Tensor

    def reordered(self, order: Sequence[int]) -> Case:
        rows = list(order)
        return Case(
            self.input_ids[rows],
            self.attention_mask[rows],
            [self.routes[row] for row in rows],
            self.decoder_input_ids[rows],
        )

    def tokens(self, row: int) -> torch.Tensor:
        """A row without its padding."""
        return self.input_ids[row][self.attention_mask[row].bool()]


@st.composite
def routes(draw: st.DrawFn, names: Sequence[str], most: int = 4) -> Route:
    """Up to `most` of these adapters, with gates of either sign."""
    chosen = draw(st.lists(st.sampled_from(names), unique=True, max_size=most))
    gate = st.sampled_from([1.0, 1.0, 0.5, 0.125, -1.5, 0.0]) | st.integers(-12, 12).map(lambda eighths: eighths / 8)
    return Route(tuple(chosen), tuple(draw(gate) for _ in chosen))


@st.composite
def cases(draw: st.DrawFn, names: Sequence[str], most: int = 4) -> Case:
    """One to six rows of one to twelve tokens, padded on the left, on the right or on both sides."""
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    width = max(lengths) + draw(st.integers(0, 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    side = draw(st.sampled_from([0.0, 0.5, 1.0]))  # of the padding, how much is on the left
    ids = torch.randint(2, 96, (len(lengths), width), generator=generator)
    starts = torch.tensor([int(side * (width - length)) for length in lengths])[:, None]
    places = torch.arange(width)
    mask = (places >= starts) & (places < starts + torch.tensor(lengths)[:, None])
    decoder = torch.randint(2, 96, (len(lengths), draw(st.integers(1, 3))), generator=generator)
    # Few routes for many rows: neighbours that share a route, and rows far apart that do.
    pool = draw(st.lists(routes(names, most), min_size=1, max_size=4))
    return Case(ids * mask, mask.long(), [draw(st.sampled_from(pool)) for _ in lengths], decoder)


def run(engine: Engine, case: Case, *, kind: str) -> list[torch.Tensor]:
    """The engine's answers at real tokens; a bare encoder's are its hidden states."""
    if kind == "t5":
        return engine.forward(
            case.input_ids, case.attention_mask, case.routes, decoder_input_ids=case.decoder_input_ids
        )
    call = engine.hidden if kind == "bert" else engine.forward
    answers = call(case.input_ids, case.attention_mask, case.routes)
    width = case.input_ids.shape[1]
    return [
        answer[real.bool()] if answer.ndim == 2 and len(answer) == width else answer
        for answer, real in zip(answers, case.attention_mask, strict=True)
    ]


def distance(mine: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
    """The largest difference of two batches of answers, in units of the largest value or of one."""
    assert [tuple(one.shape) for one in mine] == [tuple(other.shape) for other in others]
    scale = max(1.0, *(float(other.abs().max()) for other in others))
    pairs = zip(mine, others, strict=True)
    return max(float((one.double() - other.double()).abs().max()) for one, other in pairs) / scale
