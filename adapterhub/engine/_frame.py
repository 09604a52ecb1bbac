"""A frame: what a batch adds to the base, in tensors of fixed shape that are written anew for every batch.

A compiled pass reads them as its inputs. So it sees neither plans nor routes, and stays as it is when these change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from adapterhub.engine._forms import Activation, Rows
from adapterhub.engine._plan import Part, Term

__all__ = ["Frame"]


class Frame:
    """The adapted modules of a model of its own, for `rows` rows of one token.

    Ranks a row go up in steps of a third to a half, so that shapes are few. A kind of part that no batch had before (an
    activation, a gain) is a new shape too; whatever had a place in the frame keeps it, as zeros.

    Args:
        find: Finds a module of the model by its backbone-relative name.
        rows: Rows of every batch.
        ranks: Ranks a row that it has at least.
    """

    def __init__(self, find: Callable[[str], nn.Module], rows: int, ranks: int) -> None:
        self._find = find
        self._rows, self._least = rows, ranks
        self._sites: dict[str, _Site] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(value.nbytes for site in self._sites.values() for value in site.tensors())

    def write(self, parts: Mapping[str, Part]) -> None:
        """Let the modules do what the parts of a batch do.

        Args:
            parts: By module, of a plan for as many rows as the frame has.
        """
        ranks = max([self._least, *(term.rows.layout.row_ranks for part in parts.values() for term in part.terms)])
        power = 1 << (ranks - 1).bit_length()
        ranks = power * 3 // 4 if ranks <= power * 3 // 4 else power
        for name, part in parts.items():
            if name not in self._sites:
                self._sites[name] = _Site(self._find(name), self._rows)
            self._sites[name].write(part, ranks)
        for name in self._sites.keys() - parts.keys():
            self._sites[name].write(None, ranks)


class _Site:
    """A module whose forward adds what the frame holds; tensor code alone, with a branch for each kind of part.

    Args:
        module: The module.
        rows: Rows of every batch.
    """

    def __init__(self, module: nn.Module, rows: int) -> None:
        self.rows = rows
        self.forward = module.forward
        self.lows: dict[tuple[object, Activation | None], _Low] = {}
        self.gain_in: torch.Tensor | None = None
        self.gain_out: torch.Tensor | None = None
        self.gain_norm: torch.Tensor | None = None
        self.shift: torch.Tensor | None = None
        self.normalise: Callable[[torch.Tensor], torch.Tensor] | None = None
        module.forward = self

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        own = total = self.forward(x, *args, **kwargs)
        if self.gain_in is not None:
            scaled = (self._blocks(x) * (1 + self.gain_in)).to(x.dtype).view(x.shape)
            total = self.forward(scaled, *args, **kwargs)
        shape, dtype = total.shape, total.dtype
        x, own, total = self._blocks(x), self._blocks(own), self._blocks(total)
        for low in self.lows.values():
            total = low.added(total, own if low.reads == "output" else x)
        if self.gain_out is not None:
            total = total + own * self.gain_out
        if self.gain_norm is not None and self.normalise is not None:
            total = total + self.normalise(x) * self.gain_norm
        if self.shift is not None:
            total = total + self.shift
        return total.to(dtype).view(shape)

    def tensors(self) -> Iterable[torch.Tensor]:
        """All that is held."""
        for low in self.lows.values():
            yield from low.tensors()
        yield from (v for v in (self.gain_in, self.gain_out, self.gain_norm, self.shift) if v is not None)

    def write(self, part: Part | None, ranks: int) -> None:
        """Hold a part, or nothing, at so many ranks a row."""
        found = [] if part is None else part.terms
        terms: dict[tuple[object, Activation | None], Term] = {(t.reads, t.rows.activation): t for t in found}
        for kind, term in terms.items():
            if kind not in self.lows:
                self.lows[kind] = _Low(term, self.rows)
        for kind, low in self.lows.items():
            low.write(terms[kind].rows if kind in terms else None, ranks)
        for name in ("gain_in", "gain_out", "gain_norm", "shift"):
            self._write_vector(name, None if part is None else getattr(part, name))
        if part is not None and self.normalise is None:
            self.normalise = part.normalise

    def _write_vector(self, name: str, value: torch.Tensor | None) -> None:
        held: torch.Tensor | None = getattr(self, name)
        if held is None and value is not None:
            setattr(self, name, value.clone())
        elif held is not None:
            held.zero_() if value is None else held.copy_(value)

    def _blocks(self, value: torch.Tensor) -> torch.Tensor:
        return value.reshape(self.rows, -1, *(() if value.dtype == torch.int64 else value.shape[-1:]))


class _Low:
    """Each row's low-rank factors of one kind.

    Args:
        term: The first term of this kind.
        rows: Rows of every batch.
    """

    def __init__(self, term: Term, rows: int) -> None:
        self.reads = term.reads
        self.activation = term.rows.activation
        self._rows = rows
        self._held: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        self.biased = False

    def added(self, total: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """`total + act(down z + bias) up`, (rows, 1, d_out)."""
        if self.reads == "tokens":  # (rows, 1) ids
            h = self.down.gather(2, z[:, :, None].expand(-1, self.down.shape[1], -1))
        else:
            # Products and sums: compilers make loops at memory speed of them, and call slower libraries for `bmm`.
            h = (self.down * z).sum(dim=2, keepdim=True)  # (rows, ranks, 1)
        h = h + self.bias if self.biased else h
        h = h if self.activation is None else self.activation(h)
        return total + (h * self.up).sum(dim=1, keepdim=True)

    def write(self, rows: Rows | None, ranks: int) -> None:
        """Hold the rows' factors, each row's gates in its `up`, and zeros behind them."""
        if ranks not in self._held:
            assert rows is not None or self._held
            like = self._held[next(iter(self._held))][:2] if rows is None else (rows.down, rows.up)
            down, up = (value.new_zeros(self._rows, ranks, value.shape[-1]) for value in like)
            self._held[ranks] = down, up, down.new_zeros(self._rows, ranks, 1)
        self.down, self.up, self.bias = self._held[ranks]
        if rows is None:
            for held in self._held[ranks]:  # all of it: 0 · inf is NaN
                held.zero_()
            return
        layout, count = rows.layout, rows.layout.row_ranks
        values = [rows.down, rows.up, *(() if rows.bias is None else (rows.bias[:, None],))]
        self.biased = self.biased or rows.bias is not None
        down, up, *bias = (value[layout.index].view(self._rows, count, -1) for value in values)
        up = up if layout.factors is None else up * layout.factors
        for held, new in zip((self.down, self.up, self.bias), (down, up, *bias), strict=False):
            held[:, :count] = new if layout.padding is None else new.masked_fill(layout.padding, 0)
            held[:, count:] = 0
        if not bias:
            self.bias.zero_()

    def tensors(self) -> Iterable[torch.Tensor]:
        """All that is held, whichever shape is in use."""
        for held in self._held.values():
            yield from held
