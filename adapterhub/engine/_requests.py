"""A request for tokens: the handle that its caller holds, and what the batcher knows of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from adapterhub.engine._decoding import Decoding, FinishReason
from adapterhub.engine._tiers import Lease
from adapterhub.route import Route

__all__ = ["Generation", "Request"]


class Generation:
    """New token ids of one row, as they come. Any number of threads may read it.

    Iterating gives every new token id from the first on, waits for those to come, and ends with the row. An error that
    ended the row is raised where the tokens end, and by `result`.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._reason: FinishReason | None = None
        self._error: BaseException | None = None
        self._done = False
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[int]:
        given = 0
        while new := self._after(given):
            yield from new
            given += len(new)
        if self._error is not None:
            raise self._error

    def result(self, timeout: float | None = None) -> list[int]:
        """All new token ids, the one that ended the row included, once the row has ended.

        Args:
            timeout: Seconds to wait at most; None waits for ever.

        Returns:
            The ids; of a cancelled row, those that had come.

        Raises:
            TimeoutError: If the row has not ended in time.
            Exception: Whatever ended the row.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._done, timeout):
                raise TimeoutError(f"The row should end within {timeout} s. Found {len(self._tokens)} tokens so far.")
            if self._error is not None:
                raise self._error
            return list(self._tokens)

    def cancel(self) -> bool:
        """End the row now; it leaves the batch before the next step.

        Returns:
            Whether it had not ended before.
        """
        return self.finish("cancelled")

    @property
    def done(self) -> bool:
        """Whether no more tokens come."""
        return self._done

    @property
    def finish_reason(self) -> FinishReason | None:
        """`length` (also of time), `stop`, `eos` or `cancelled`; None while it runs, and where an error ended it."""
        return self._reason

    def _after(self, given: int) -> list[int]:
        """The tokens behind the first `given`, once there are any; none where the row has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._done or len(self._tokens) > given)
            return self._tokens[given:]

    def put(self, token: int) -> None:
        """Add a token, unless the row has ended."""
        with self._changed:
            if not self._done:
                self._tokens.append(token)
                self._changed.notify_all()

    def finish(self, reason: FinishReason | None, error: BaseException | None = None) -> bool:
        """End the row, unless it has ended; returns whether it had not."""
        with self._changed:
            if self._done:
                return False
            self._reason, self._error, self._done = reason, error, True
            self._changed.notify_all()
            return True


class Request:
    """A row from its submission to its end; only the batcher's thread touches it after that.

    Args:
        ids: (1, T), int64, the prompt.
        route: Its adapters and gates.
        decoding: How tokens are chosen.
        options: What `generate` was asked, for a request that it runs.
    """

    def __init__(self, ids: torch.Tensor, route: Route, decoding: Decoding, options: Mapping[str, Any]) -> None:
        self.ids = ids
        self.route = route
        self.decoding = decoding
        self.options = options
        self.generation = Generation()
        self.length = ids.shape[1]  # tokens so far
        self.newest = 0  # the last of them, once it was chosen
        self.weight = 1.0  # what one of its tokens costs, beside one of the base's
        self.prefetched = False
        self._lease: Lease | None = None
        self._generator: torch.Generator | None = None
        self._history: torch.Tensor | None = None  # (1, max_length)
        if not decoding.plain or decoding.criteria:
            self._history = ids.new_zeros(1, max(decoding.max_length, self.length + 1))
            self._history[:, : self.length] = ids
        if decoding.sample:
            self._generator = torch.Generator(ids.device).manual_seed(decoding.seed)

    @property
    def client(self) -> str:
        """Who pays for it: the route's first adapter; the base is a client too."""
        return self.route.adapters[0] if self.route.adapters else ""

    @property
    def tokens(self) -> int:
        """Tokens that its admission runs at once: the prompt, or everything where `generate` runs it."""
        return self.decoding.max_length if self.decoding.alone else self.ids.shape[1]

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.generation.done

    def hold(self, lease: Lease) -> None:
        """Keep its adapters in the arena until `end`."""
        self._lease = lease

    def choose(self, logits: torch.Tensor) -> int:
        """The next token, as `generate` would choose it for this row alone.

        Args:
            logits: (1, vocabulary).
        """
        assert self._history is not None
        # A copy: processors may write into their argument.
        scores = logits.to(torch.float32, copy=True)
        scores = self.decoding.processors(self._history[:, : self.length], scores)
        if self._generator is None:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))

    def take(self, token: int) -> None:
        """Add the token that was chosen, hand it out, and end the row where it is the last."""
        if self._history is not None:
            self._history[0, self.length] = token
        self.length += 1
        self.newest = token
        ids = None if self._history is None else self._history[:, : self.length]
        reason = self.decoding.end(token, self.length, ids)
        self.generation.put(token)
        if reason is not None:
            self.end(reason)

    def take_all(self, tokens: Sequence[int]) -> None:
        """Hand out all tokens of a row that `generate` ran, and end it."""
        for token in tokens:
            self.generation.put(token)
        ended = bool(tokens) and tokens[-1] in self.decoding.eos
        full = self.length + len(tokens) >= self.decoding.max_length
        self.end("eos" if ended else "length" if full else "stop")

    def end(self, reason: FinishReason | None = None, error: BaseException | None = None) -> None:
        """End the row, if it has not ended, and let its adapters go."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None
        self.generation.finish(reason, error)
