"""How a batch would be computed: the plan of each module beside what the others would cost."""

from __future__ import annotations

from dataclasses import dataclass

from adapterhub.engine._arena import Arena
from adapterhub.engine._plan import Plan
from adapterhub.engine._planner import KINDS, Costs, Kind, choose, costs

__all__ = ["Choice", "Explanation", "explain"]


@dataclass(frozen=True)
class Choice:
    """One bank of one module.

    Args:
        module: The module, relative to the backbone.
        reads: What its adapters read: `input`, `output` or `tokens`.
        plan: The plan that is taken.
        ranks: Ranks of the batch's adapters here, each counted once.
        row_ranks: The most ranks that one row uses.
        costs: What each plan is estimated to take in one pass, in microseconds.
    """

    module: str
    reads: str
    plan: Kind
    ranks: int
    row_ranks: int
    costs: Costs


@dataclass(frozen=True)
class Explanation:
    """How a batch is computed; printed, it is a table.

    Args:
        rows: Rows of the batch.
        tokens: Tokens a row in one pass.
        adapters: Distinct adapters in it.
        choices: One for each bank of each adapted module. Elementwise parts (IA³, layer-norm tuning) are not planned.
        kernel: Whether the compiled kernel is there, or why not.
    """

    rows: int
    tokens: int
    adapters: int
    choices: tuple[Choice, ...]
    kernel: str

    def __str__(self) -> str:
        groups: dict[tuple[Kind, str, int, int], list[Costs]] = {}
        for choice in self.choices:
            key = (choice.plan, choice.reads, choice.ranks, choice.row_ranks)
            groups.setdefault(key, []).append(choice.costs)
        lines = [
            f"{self.rows} rows, {self.tokens} tokens a row, {self.adapters} adapters; estimated microseconds",
            f"{'plan':8} {'reads':7} {'modules':>7} {'ranks':>6} {'a row':>6} "
            + " ".join(f"{kind:>9}" for kind in KINDS),
        ]
        for (plan, reads, ranks, row_ranks), found in groups.items():
            sums = " ".join(f"{sum(getattr(costs, kind) for costs in found):9.0f}" for kind in KINDS)
            lines.append(f"{plan:8} {reads:7} {len(found):7} {ranks:6} {row_ranks:6} {sums}")
        return "\n".join([*lines, f"kernel: {self.kernel}"])


def explain(arena: Arena, plan: Plan, tokens: int) -> Explanation:
    """What `Engine.explain` tells.

    Args:
        arena: Where the plan's adapters are.
        plan: The batch's plan.
        tokens: Tokens a row in one pass.
    """
    choices = tuple(
        Choice(
            module,
            term.reads,
            choose(term.rows, tokens, plan.uses, plan.kind, plan.native),
            term.rows.layout.ranks,
            term.rows.layout.row_ranks,
            costs(term.rows, tokens, plan.uses, plan.native),
        )
        for module, part in arena.complete(plan).items()
        for term in part.terms
    )
    kernel = "none" if plan.native is None else plan.native.state
    return Explanation(len(plan.routes), tokens, len(plan.names), choices, kernel)
