"""The sum over a bank's adapters by the compiled kernel, straight from the arena's memory."""

from __future__ import annotations

import torch

from adapterhub.engine._forms import Form, Rows
from adapterhub.engine._jobs import BankOf
from adapterhub.engine._library import Library

__all__ = ["Kernel", "applies"]

_SHORT = "The kernel found no memory for the batch's activations. Run fewer rows or tokens at once."


def applies(rows: Rows) -> bool:
    """Whether the kernel knows these rows: plain LoRA on a CPU, in float32 or bfloat16."""
    down, up = rows.down, rows.up
    plain = rows.activation is None and rows.bias is None and not rows.tokens
    held = down.is_cpu and up.is_cpu and down.is_contiguous() and up.is_contiguous()
    return plain and held and down.dtype is up.dtype and down.dtype in {torch.float32, torch.bfloat16}


class Kernel(Form):
    """Each adapter read once, where it lies, for all rows that use it; ranks of any length, nothing gathered or padded.

    A row's result does not depend on the other rows, nor on the number of threads, to the last bit.

    Args:
        rows: Rows of the bank, of which `applies` holds.
        tokens: Tokens a row.
        library: The kernel.
    """

    def __init__(self, rows: Rows, tokens: int, library: Library) -> None:
        self._dtype = rows.down.dtype
        self._jobs = rows.layout.jobs(tokens)
        self._bank = BankOf(rows.down, rows.up)
        self._at = self._jobs.address, self._bank.address
        count = rows.layout.rows * tokens
        self._read, self._written = count * rows.down.shape[1], count * rows.up.shape[1]
        self._library = library
        self._apply = library.apply

    def apply(self, total: torch.Tensor, z: torch.Tensor) -> None:
        # This runs for every module of every step, so it asks only what memory safety needs.
        if (
            z.dtype is self._dtype is total.dtype
            and z.is_contiguous()
            and total.is_contiguous()
            and z.numel() == self._read
            and total.numel() == self._written
            and total.is_cpu
        ):
            jobs, bank = self._at
            if self._apply(jobs, bank, z.data_ptr(), total.data_ptr(), torch.get_num_threads()):
                raise MemoryError(_SHORT)
        else:
            self.add(total, self.hidden(z))

    def hidden(self, z: torch.Tensor) -> list[torch.Tensor]:
        z = z.to(self._dtype).contiguous()
        _check_size(z, self._read)
        h = torch.empty(self._jobs.hidden, dtype=torch.float32)
        _check(self._library.read(*self._at, z.data_ptr(), h.data_ptr(), torch.get_num_threads()))
        return [h]

    def add(self, total: torch.Tensor, hidden: list[torch.Tensor]) -> None:
        same = total.dtype is self._dtype
        y = total.contiguous() if same else total.new_zeros(total.shape, dtype=self._dtype)
        _check_size(y, self._written)
        _check(self._library.add(*self._at, hidden[0].data_ptr(), y.data_ptr(), torch.get_num_threads()))
        if not same:
            total.add_(y)
        elif y is not total:
            total.copy_(y)


def _check_size(value: torch.Tensor, count: int) -> None:
    if value.numel() != count:
        raise ValueError(f"A module's input and output have the adapters' widths. Found {tuple(value.shape)}.")


def _check(fault: int) -> None:
    if fault:
        raise MemoryError(_SHORT)
