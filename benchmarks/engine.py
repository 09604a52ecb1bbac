"""What does a batch whose rows have different adapters cost, beside the bare base and PEFT?"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from adapterhub.adapter import describe_base, seal
from adapterhub.engine import Engine
from adapterhub.route import Route
from benchmarks.report import Target, arguments, interleaved, save

QUESTION = "What does a batch of mixed adapters cost, beside the bare base and PEFT?"
ROWS, PROMPT, NEW = 16, 32, 12
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def base_model(hidden: int, layers: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 128, max_position_embeddings=512,
        pad_token_id=0, eos_token_id=None, bos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def make_adapters(folder: Path, hidden: int, layers: int) -> list[Path]:
    """Sixteen sealed LoRA folders of ranks 8, 16, 32 on q, k, v, o."""
    signature = describe_base(base_model(hidden, layers), "bench")
    found = []
    for number in range(ROWS):
        torch.manual_seed(number)
        rank = (8, 16, 32, 8)[number % 4]
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, init_lora_weights=False)
        peft = get_peft_model(base_model(hidden, layers), config)
        target = folder / f"a{number:02d}"
        peft.save_pretrained(target)
        seal(target, signature)
        found.append(target)
    return found


def main() -> None:
    args = arguments(QUESTION)
    torch.set_num_threads(1)
    hidden, layers = (768, 12) if args.full else (256, 6)
    ids = torch.randint(2, 8192, (ROWS, PROMPT), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    with tempfile.TemporaryDirectory() as temporary:
        folders = make_adapters(Path(temporary), hidden, layers)
        plain = base_model(hidden, layers)
        engine = Engine(base_model(hidden, layers), model_id="bench")
        peft = PeftModel.from_pretrained(base_model(hidden, layers), folders[0], adapter_name="s00")
        for number, folder in enumerate(folders):
            engine.add(f"s{number:02d}", folder)
            if number:
                peft.load_adapter(folder, adapter_name=f"s{number:02d}")
        peft.eval()
        cases: dict[str, Callable[[], object]] = {
            "base": lambda: plain.generate(input_ids=ids, attention_mask=mask, **options)
        }
        for distinct in (1, 4, 16):
            names = [f"s{row % distinct:02d}" for row in range(ROWS)]
            routes = [Route.to(name) for name in names]
            cases[f"engine, {distinct} adapters, k = 1"] = lambda r=routes: engine.generate(ids, mask, r, **options)
            cases[f"PEFT mixed batch, {distinct} adapters"] = lambda n=names: peft.generate(
                input_ids=ids, attention_mask=mask, adapter_names=n, **options
            )
            if distinct == 4:  # every row its own weighted sum of three
                sums = [Route(tuple(f"s{(row + i) % 4:02d}" for i in range(3)), (0.5, 0.3, 0.2)) for row in range(ROWS)]
                cases["engine, 4 adapters, k = 3"] = lambda r=sums: engine.generate(ids, mask, r, **options)
            _gate(engine, peft, ids, mask, routes, names, options)
        with torch.no_grad():
            timed = interleaved(cases, 7 if args.full else 5)
    reference = timed["base"]["median_ms"]
    rows: list[dict[str, object]] = [
        {"case": name, "x base": figures["median_ms"] / reference, **figures} for name, figures in timed.items()
    ]
    ratio = {row["case"]: float(str(row["x base"])) for row in rows}
    targets = [
        Target("generation, 16 adapters, k = 1, x base", ratio["engine, 16 adapters, k = 1"], 1.25),
        Target(
            "engine / PEFT, 16 adapters",
            ratio["engine, 16 adapters, k = 1"] / ratio["PEFT mixed batch, 16 adapters"],
            1.0,
        ),
        Target(
            "engine / PEFT, 4 adapters", ratio["engine, 4 adapters, k = 1"] / ratio["PEFT mixed batch, 4 adapters"], 1.0
        ),
    ]
    save("engine", QUESTION, rows, targets, ("x base",))


def _gate(engine, peft, ids, mask, routes, names, options):
    """A case is timed only if its greedy tokens are PEFT's."""
    ours = engine.generate(ids, mask, routes, **options).sequences
    theirs = peft.generate(input_ids=ids, attention_mask=mask, adapter_names=names, **options)
    if not torch.equal(ours, theirs):
        raise SystemExit("The engine's tokens differ from PEFT's; nothing was timed.")


if __name__ == "__main__":
    main()
