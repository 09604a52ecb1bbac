"""The engine: one frozen base model and a rank arena; every row of a batch answers through its own adapters."""

from adapterhub.engine._batcher import Batcher
from adapterhub.engine._compiled import Compiled
from adapterhub.engine._engine import Engine
from adapterhub.engine._explain import Choice, Explanation
from adapterhub.engine._planner import Costs
from adapterhub.engine._requests import Generation
from adapterhub.engine._tiers import TierStats

__all__ = ["Batcher", "Choice", "Compiled", "Costs", "Engine", "Explanation", "Generation", "TierStats"]
