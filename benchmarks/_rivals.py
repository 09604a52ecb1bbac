"""Who runs a case in this process: the bare base, the engine under each plan, and PEFT in three ways."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import DynamicCache

from adapterhub.engine import Engine
from adapterhub.route import Route
from benchmarks._cases import CONTEXT, Work
from benchmarks._measure import Case

Kind = Literal["dense", "packed", "blocked", "segment", "kernel"]
PLANS: tuple[Kind, ...] = ("dense", "packed", "blocked", "segment", "kernel")


class Inputs:
    """The batch of a case, the same for everybody: random prompts, and a KV cache that the bare base filled.

    Args:
        model: The bare base.
        work: The case.
        new_tokens: Tokens that a generation makes.
    """

    def __init__(self, model: Any, work: Work, new_tokens: int) -> None:
        random = torch.Generator().manual_seed(1)
        length = CONTEXT if work.kind == "decode" else work.tokens
        self.ids = torch.randint(2, model.config.vocab_size, (work.rows, length), generator=random)
        self.mask = torch.ones_like(self.ids)
        # A decoding step needs a cache that everybody shares; its gate may start from a shorter prompt.
        self.gate_ids = self.ids[:, :8] if work.kind == "decode" else self.ids
        self.options = {"do_sample": False, "eos_token_id": None, "max_new_tokens": new_tokens}
        self.options["min_new_tokens"] = new_tokens
        parameters = sum(weight.numel() for weight in model.parameters())
        # Enough steps for a sample of some hundred milliseconds.
        self.steps = max(3, min(10, 50_000_000 // parameters)) if work.kind == "decode" else 1
        self._model, self._work = model, work

    def timed(
        self, model: Any, around: Callable[[], AbstractContextManager[object]] = nullcontext, **names: Any
    ) -> Case:
        """The case on one model.

        Args:
            model: The model, or what wraps it.
            around: What the model runs in. Making a plan is not a part of a decoding step; of the others it is.
            **names: Further keyword arguments of every call.
        """
        kind = self._work.kind
        if kind == "decode":
            return Case(self.step(model, slice(None), **names), around, settle=True, steps=self.steps)

        def run() -> None:
            with around():
                if kind == "generate":
                    model.generate(input_ids=self.ids, attention_mask=self.mask, **self.options, **names)
                else:
                    model(input_ids=self.ids, use_cache=True, logits_to_keep=1, **names)

        return Case(run)

    def gate(self, count: int) -> dict[str, Any]:
        """What `generate` takes for the first `count` tokens."""
        length = {"max_new_tokens": count, "min_new_tokens": count}
        mask = torch.ones_like(self.gate_ids)
        return {"input_ids": self.gate_ids, "attention_mask": mask, **self.options, **length}

    def step(self, model: Any, rows: Any, **names: Any) -> Callable[[], object]:
        """One decoding step of some rows on a cache of `CONTEXT` tokens, which is as before when it returns."""
        cache = DynamicCache(config=self._model.config)
        ids = self.ids[rows]
        self._model(input_ids=ids, past_key_values=cache, use_cache=True)

        def run() -> None:
            model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True, **names)
            cache.crop(-1)

        return run


class Planned:
    """The engine as a model that runs under one plan.

    Args:
        engine: The engine.
        routes: One a row.
        plan: A plan that is forced, or None for the planner's choice.
        uses: Passes that the planner may expect.
    """

    def __init__(self, engine: Engine, routes: Sequence[Route], plan: Kind | None, uses: int) -> None:
        self.engine, self.routes, self.plan, self.uses = engine, routes, plan, uses

    def around(self) -> AbstractContextManager[object]:
        return self.engine.planned(self.routes, plan=self.plan, uses=self.uses)

    def case(self, inputs: Inputs) -> Case:
        return inputs.timed(self.engine.model, self.around)

    def tokens(self, inputs: Inputs, count: int) -> torch.Tensor:
        with self.around():
            return self.engine.model.generate(**inputs.gate(count))

    def logits(self, inputs: Inputs) -> torch.Tensor:
        with self.around():
            return self.engine.model(input_ids=inputs.ids, logits_to_keep=1).logits


class Peft:
    """PEFT on one model: mixed batches, the loop over `set_adapter`, and mixtures that were merged beforehand.

    Args:
        model: A base of its own.
        folders: The adapters, by name.
    """

    def __init__(self, model: Any, folders: dict[str, Path]) -> None:
        first, *others = folders
        options = {"autocast_adapter_dtype": False}  # or a bfloat16 adapter would run in float32
        self.model = PeftModel.from_pretrained(model, folders[first], adapter_name=first, **options)
        for name in others:
            self.model.load_adapter(folders[name], adapter_name=name, **options)
        self.model.eval()

    def names(self, routes: Sequence[Route]) -> list[str]:
        """One PEFT adapter a row; a mixture becomes one by PEFT's exact combination, `cat`."""
        found = []
        for number, route in enumerate(routes):
            if len(route.adapters) == 1:
                found.append(route.adapters[0])
                continue
            name = f"m{number:05d}"
            self.model.add_weighted_adapter(list(route.adapters), list(route.gates), name, combination_type="cat")
            found.append(name)
        return found

    def forget(self, names: Sequence[str]) -> None:
        """Delete the mixtures among some names."""
        for name in names:
            if name.startswith("m"):
                self.model.delete_adapter(name)

    def loop(self, inputs: Inputs, names: Sequence[str]) -> Case:
        """One decoding step: for every adapter `set_adapter`, then its rows alone."""
        steps = []
        for name in dict.fromkeys(names):
            rows = [row for row, other in enumerate(names) if other == name]
            steps.append((name, inputs.step(self.model, rows)))

        def run() -> None:
            for name, step in steps:
                self.model.set_adapter(name)
                step()

        return Case(run)

    def tokens(self, inputs: Inputs, names: Sequence[str], count: int) -> torch.Tensor:
        return self.model.generate(**inputs.gate(count), adapter_names=list(names))

    def logits(self, inputs: Inputs, names: Sequence[str]) -> torch.Tensor:
        return self.model(input_ids=inputs.ids, adapter_names=list(names), logits_to_keep=1).logits
