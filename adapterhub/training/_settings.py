"""What the arithmetic of a run depends on beside its data."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """What a run's arithmetic depends on beside its data; stored in its checkpoint.

    Args:
        learning_rate: Peak of the schedule.
        batch_size: Rows of a step.
        steps: Steps in all.
        every: Steps between evaluations and checkpoints.
        warmup: Share of the steps over which the learning rate rises.
        decay: Shape of its fall to zero, `linear` or `cosine`.
        patience: Evaluations without improvement after which a task stops, and with the last the run; None for never.
        seed: Seed of the order and of the fresh weights.
        mixed_precision: accelerate's word, `no` or `bf16`.
        optimiser: One of `optimisers.OPTIMISERS`.
        lora_plus_ratio: Factor on the learning rate of LoRA's B, or None.
        max_grad_norm: The gradient of a step is scaled down to this norm; None for no bound.
        per_task_clip: So is each task's own, before they are put together; None for no bound.
        micro_batch_size: Rows that are in memory at once; None for all of a batch.
        curriculum: `length` or `loss` for easy rows first, or None.
    """

    learning_rate: float
    batch_size: int
    steps: int
    every: int
    warmup: float
    decay: str
    patience: int | None
    seed: int
    mixed_precision: str
    optimiser: str = "adamw"
    lora_plus_ratio: float | None = None
    max_grad_norm: float | None = 1.0
    per_task_clip: float | None = None
    micro_batch_size: int | None = None
    curriculum: str | None = None

    def factor(self, step: int) -> float:
        """The learning rate at a step, as a share of its peak."""
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return (step + 1) / rise
        left = max(0.0, (self.steps - step) / max(1, self.steps - rise))
        return left if self.decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)
