"""Pre-train the small causal language model that adapterhub embeds in `registry/_base`.

    python scripts/pretrain_base.py --corpora DIR --data DIR --work DIR --minutes 75 --out registry/_base

Three stages, each skipped when its result is in the work folder: a byte-level BPE tokenizer, the corpora as token ids,
and the training itself, which resumes from its last checkpoint. The schedule follows the time budget: linear warm-up,
constant, linear decay to zero over the last third.
"""

import argparse
import json
import math
import re
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WEIGHTS = {"sni_open": 2.0, "sgd_dialogues": 2.0, "novels100": 3.0, "factbook": 1.0}
VOCABULARY = 4096
WINDOW = 512
END = "<|endoftext|>"
PAD = "<|pad|>"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True, help="folder with the text files")
    parser.add_argument("--data", type=Path, required=True, help="folder of tasks whose test inputs are left out")
    parser.add_argument("--work", type=Path, required=True, help="folder for token ids and checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished model")
    parser.add_argument("--minutes", type=float, default=75.0, help="training time in all, resumed runs included")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=16, help=f"windows of {WINDOW} tokens a step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args()


def held_out_inputs(data: Path) -> set[str]:
    """Every test input below the data folder, white space folded."""
    found = set()
    for path in sorted(data.glob("**/test*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            found.add(" ".join(json.loads(line)["input"].split()))
    return found


def documents(name: str, text: str) -> list[str]:
    """Split a corpus into documents: blank-line blocks, novels by chapters of about 8,000 characters."""
    if name == "sni_open":
        return [block.strip() for block in text.split("\n\n\n")]
    if name == "novels100":
        return [text[start : start + 8000] for start in range(0, len(text), 8000)]
    return re.split(r"\n\s*\n", text)


def load_documents(corpora: Path, data: Path) -> tuple[dict[str, list[str]], dict[str, int]]:
    """The documents of each corpus without those that hold a test input, and how many were dropped."""
    held_out = held_out_inputs(data)
    kept: dict[str, list[str]] = {}
    dropped: dict[str, int] = {}
    for name in WEIGHTS:
        found = documents(name, (corpora / f"{name}.txt").read_text(encoding="utf-8"))
        clean = [d for d in found if d.strip() and " ".join(d.split("\n=> ")[0].split()) not in held_out]
        kept[name], dropped[name] = clean, len(found) - len(clean)
    return kept, dropped


def train_tokenizer(corpus: dict[str, list[str]], path: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=5,
    )
    smallest = min(sum(map(len, texts)) for texts in corpus.values())
    samples = []
    for texts in corpus.values():
        total = 0
        for position in np.random.default_rng(0).permutation(len(texts)):
            samples.append(texts[position])
            total += len(texts[position])
            if total > smallest:
                break
    tokenizer.train_from_iterator(samples, trainer)
    tokenizer.save(str(path))
    return tokenizer


def prepare(corpora: Path, data: Path, work: Path) -> tuple[Tokenizer, dict[str, np.ndarray]]:
    """Tokenizer and token ids of each corpus, made once and kept in the work folder."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer_path = work / "tokenizer.json"
    if not all((work / f"{name}.npy").exists() for name in WEIGHTS):
        corpus, dropped = load_documents(corpora, data)
        tokenizer = train_tokenizer(corpus, tokenizer_path)
        end = tokenizer.token_to_id(END)
        sizes = {}
        for name, texts in corpus.items():
            ids: list[int] = []
            for start in range(0, len(texts), 2000):
                for encoding in tokenizer.encode_batch(texts[start : start + 2000]):
                    ids.extend(encoding.ids)
                    ids.append(end)
            sizes[name] = len(ids)
            np.save(work / f"{name}.npy", np.asarray(ids, dtype=np.uint16))
        (work / "prepared.json").write_text(json.dumps({"dropped": dropped, "corpus_tokens": sizes}, indent=1))
    tokens = {name: np.load(work / f"{name}.npy", mmap_mode="r") for name in WEIGHTS}
    return Tokenizer.from_file(str(tokenizer_path)), tokens


def sample(tokens: dict[str, np.ndarray], batch: int, generator: np.random.Generator) -> torch.Tensor:
    """A batch of windows, (batch, WINDOW + 1) int64, corpora drawn by weight."""
    names = list(tokens)
    weights = np.asarray([WEIGHTS[name] for name in names])
    rows = []
    for choice in generator.choice(len(names), size=batch, p=weights / weights.sum()):
        ids = tokens[names[choice]]
        start = int(generator.integers(0, len(ids) - WINDOW - 1))
        rows.append(ids[start : start + WINDOW + 1].astype(np.int64))
    return torch.from_numpy(np.stack(rows))


def new_model(hidden: int, layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=round(hidden * 2.75 / 32) * 32,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def optimizers(model: LlamaForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def factor(progress: float) -> float:
    """Learning-rate factor at a share of the time budget: warm-up 2 %, constant, linear decay from 67 %."""
    if progress < 0.02:
        return max(progress / 0.02, 0.01)
    return 1.0 if progress < 0.67 else max(0.0, (1.0 - progress) / 0.33)


def save_checkpoint(path: Path, state: dict[str, object]) -> None:
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def train(args: argparse.Namespace, tokens: dict[str, np.ndarray]) -> tuple[LlamaForCausalLM, dict[str, float]]:
    torch.set_num_threads(args.threads)
    model = new_model(args.hidden, args.layers)
    optims = optimizers(model, args.lr)
    checkpoint = args.work / "checkpoint.pt"
    step, spent, seen, smooth = 0, 0.0, 0, math.log(VOCABULARY)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optim, saved in zip(optims, state["optimizers"], strict=True):
            optim.load_state_dict(saved)
        step, spent, seen, smooth = state["step"], state["spent"], state["seen"], state["loss"]
        print(f"resumed at step {step}, {spent / 60:.1f} minutes spent", flush=True)
    forward = model if args.no_compile else torch.compile(model)
    budget, last_saved = args.minutes * 60, spent
    generator = np.random.default_rng([17, step])
    while spent < budget:
        begin = time.monotonic()
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = args.lr * factor(spent / budget)
        batch = sample(tokens, args.batch, generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = forward(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + batch[:, 1:].numel()
        smooth = 0.98 * smooth + 0.02 * loss.item()
        spent += min(time.monotonic() - begin, 60.0)
        if step % 20 == 0:
            print(f"step {step} tokens {seen / 1e6:.2f}M minutes {spent / 60:.1f} loss {smooth:.3f}", flush=True)
        if spent - last_saved > 180 or spent >= budget:
            saved = [optim.state_dict() for optim in optims]
            state = {"model": model.state_dict(), "optimizers": saved, "step": step, "spent": spent, "seen": seen}
            save_checkpoint(checkpoint, state | {"loss": smooth})
            last_saved = spent
    return model, {"steps": step, "tokens": seen, "minutes": round(spent / 60, 1), "train_loss": round(smooth, 3)}


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, figures: dict[str, float], out: Path) -> None:
    """Write config, tokenizer and bfloat16 safetensors, and the figures of the run."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=PAD, model_max_length=WINDOW
    )
    model.generation_config.pad_token_id = 1
    model.to(torch.bfloat16).save_pretrained(out)
    wrapped.save_pretrained(out)
    (out / "pretraining.json").write_text(json.dumps(figures, indent=1) + "\n")


def main() -> None:
    args = arguments()
    tokenizer, tokens = prepare(args.corpora, args.data, args.work)
    model, figures = train(args, tokens)
    prepared = json.loads((args.work / "prepared.json").read_text())
    export(model, tokenizer, figures | {"parameters": model.num_parameters()} | prepared, args.out)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
