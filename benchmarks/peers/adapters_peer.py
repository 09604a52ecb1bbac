"""The library `adapters`, run by the Python of its own environment: one specification in, one JSON answer out.

It adapts q, k and v of Llama, one adapter a row by `BatchSplit`; every other case is `null`. The base is timed in the
same run, in turns, on a model without the library's layers.

Release 1.3.0 loses Llama's KV cache: its attention still waits for `past_key_value`, and the transformers that it asks
for, 4.57.6, says `past_key_values`. Every token after the first would be wrong, so the cache is handed over here.
"""

import copy
import itertools
import json
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import adapters
import torch
from adapters import LoRAConfig
from adapters import composition as ac
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DynamicCache

CLOCKS = {"cpu": (1, time.process_time), "wall": (2, time.perf_counter)}


def main(spec):
    base = AutoModelForCausalLM.from_pretrained(spec["base"], dtype=torch.float32).eval()
    shared = {id(tensor): tensor for tensor in itertools.chain(base.parameters(), base.buffers())}
    model = copy.deepcopy(base, shared)
    adapters.init(model)
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(hand_over, with_kwargs=True)
    answers = dict.fromkeys((case["name"] for case in spec["cases"]), None)
    if set(spec["targets"]) <= {"q_proj", "k_proj", "v_proj"}:
        for name, folder in spec["adapters"].items():
            add(model, name, Path(folder))
        model.eval()
        with torch.no_grad():
            for case in spec["cases"]:
                if case["k"] == 1:
                    answers[case["name"]] = measure(base, model, case, spec)
    return {"versions": {name: version(name) for name in ("adapters", "torch", "transformers")}, "cases": answers}


def hand_over(_, args, kwargs):
    """The KV cache under the name that the library's attention knows."""
    cache = kwargs.pop("past_key_values", None)
    return args, kwargs | {"past_key_value": cache}


def add(model, name, folder):
    """An adapter of the library with the factors of a PEFT folder."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    rank, alpha = config["r"], config["lora_alpha"]
    letters = [target[0] for target in config["target_modules"]]
    model.add_adapter(name, config=LoRAConfig(r=rank, alpha=alpha, attn_matrices=letters, dropout=0.0))
    tensors = load_file(folder / "adapter_model.safetensors")
    for module_name, module in model.named_modules():
        if name in getattr(module, "loras", {}):
            prefix = f"base_model.model.{module_name}"
            module.loras[name].lora_A.detach().copy_(tensors.pop(f"{prefix}.lora_A.weight"))
            module.loras[name].lora_B.detach().copy_(tensors.pop(f"{prefix}.lora_B.weight"))
    if tensors:
        raise SystemExit(f"{name}: no place for {sorted(tensors)}")


def measure(base, model, case, spec):
    """Greedy tokens for the gate, and milliseconds of base and peer, in turns, by clock."""
    ids = torch.tensor(case["ids"])
    names = case["rows"]
    model.set_active_adapters(ac.BatchSplit(*names, batch_sizes=[1] * len(names)))
    gate = torch.tensor(case["gate_ids"])
    made = generate(model, gate, spec["gate_tokens"])[:, gate.shape[1] :].tolist()
    runs = {key: runner(one, base, ids, case) for key, one in (("base", base), ("peer", model))}
    times = {}
    for clock, (threads, now) in CLOCKS.items():
        torch.set_num_threads(threads)
        times[clock] = {"base": [], "peer": []}
        for _ in range(spec["repeats"]):
            for key, run in runs.items():
                run()
                begin = now()
                for _ in range(case["steps"]):
                    run()
                times[clock][key].append(1000 * (now() - begin) / case["steps"])
        print(
            case["name"], clock, {k: round(statistics.median(v), 1) for k, v in times[clock].items()}, file=sys.stderr
        )
    return {"tokens": made, "times": times}


def runner(model, base, ids, case):
    if case["kind"] == "generate":
        return lambda: generate(model, ids, case["new_tokens"])
    if case["kind"] == "prefill":
        return lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1)
    cache = DynamicCache()
    base(input_ids=ids, past_key_values=cache, use_cache=True)
    length = cache.get_seq_length()

    def step():
        model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
        cache.crop(length)

    return step


def generate(model, ids, count):
    return model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=None,
        max_new_tokens=count, min_new_tokens=count,
    )  # fmt: skip


if __name__ == "__main__":
    found = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")
