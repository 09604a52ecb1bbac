"""The model card of a pushed task: its front matter is what the Hub's search reads."""

from __future__ import annotations

import json
import re
import textwrap

from huggingface_hub import EvalResult, ModelCardData

from adapterhub.hub._urls import check_path, check_repo_id
from adapterhub.task import Head, Task

__all__ = ["model_card"]

_PIPELINES: dict[Head, str] = {
    "generation": "text-generation",
    "classification": "text-classification",
    "token-classification": "token-classification",
    "regression": "text-classification",
}
_CLASSES: dict[Head, str] = {
    "generation": "AutoModelForCausalLM",
    "classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "regression": "AutoModelForSequenceClassification",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def model_card(task: Task, *, repo_id: str = "", path_in_repo: str = "", int8: bool = False) -> str:
    """Writes the README of a task folder on the Hub, with front matter.

    Only what the card states is written: a metric that was not measured does not appear. Names that cannot be ids on
    the Hub (a base model or a dataset given by a path or in words) are in the text and not in the front matter.

    Args:
        task: The task.
        repo_id: `org/repo` it is pushed to; without it or a base model, no code that loads the adapter is shown.
        path_in_repo: Folder inside the repository; empty for its root.
        int8: Whether the adapter's matrices are stored as int8, which PEFT refuses.

    Raises:
        InputError: If the repository or the folder is malformed.
    """
    return f"---\n{_front_matter(task, int8=int8).to_yaml()}\n---\n\n{_body(task, repo_id, path_in_repo, int8=int8)}"


def _front_matter(task: Task, *, int8: bool) -> ModelCardData:
    data = ModelCardData(
        library_name="adapterhub" if int8 else "peft",
        base_model=task.base_model if _is_model_id(task.base_model) else None,
        license=task.license or None,
        pipeline_tag=_PIPELINES[task.head],
        tags=["adapterhub", *(["int8"] if int8 else []), *task.tags],
        datasets=[name for name in task.datasets if _HUB_ID.fullmatch(name)] or None,
        metrics=sorted(task.metrics) or None,
        model_name=task.name,
        eval_results=_results(task) or None,
    )
    if data.eval_results is None:  # without results the client would write the name under a key the Hub does not know
        data.pop("model_name")
    return data


def _results(task: Task) -> list[EvalResult]:
    dataset = ", ".join(task.datasets) or task.name
    return [
        EvalResult(
            task_type=_PIPELINES[task.head],
            task_name=task.name,
            dataset_type=task.datasets[0] if task.datasets else task.name,
            dataset_name=dataset,
            metric_type=metric,
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in sorted(task.metrics.items())
    ]


def _is_model_id(base_model: str) -> bool:
    return "/" in base_model and _HUB_ID.fullmatch(base_model) is not None


def _body(task: Task, repo_id: str, path_in_repo: str, *, int8: bool) -> str:
    facts = [
        f"- Base model: {task.base_model or 'not stated'}",
        f"- Head: {task.head}" + (f" over {', '.join(task.labels)}" if task.labels else ""),
        f"- Trained on: {', '.join(task.datasets) or 'not stated'}",
        *([f"- Stands on the adapters of: {', '.join(task.stack)}"] if task.stack else []),
        *(["- Stored as: int8, with a scale for each row of a matrix"] if int8 else []),
        *(f"- {metric}: {value:g}" for metric, value in sorted(task.metrics.items())),
    ]
    parts = [f"# {task.name}", task.description, "\n".join(facts), "## Prompt", _block(task.prompt)]
    if task.examples:
        parts += ["## Inputs it is for", *map(_block, task.examples)]
    if repo_id and task.base_model:
        place = check_repo_id(repo_id), check_path(path_in_repo)
        plain = not (int8 or task.stack)
        parts += ["## Use", *([_usage(task, *place)] if plain else _usage_here(task, *place, int8=int8))]
    return "\n\n".join(parts) + "\n"


def _usage(task: Task, repo_id: str, path: str) -> str:
    subfolder = f", subfolder={json.dumps(path)}" if path else ""
    count = {"generation": "", "regression": ", num_labels=1"}.get(task.head, f", num_labels={len(task.labels)}")
    return _block(
        "import adapterhub.methods  # only a bottleneck adapter needs this line\n"
        "from peft import PeftModel\n"
        f"from transformers import {_CLASSES[task.head]}\n\n"
        f"base = {_CLASSES[task.head]}.from_pretrained({json.dumps(task.base_model)}{count})\n"
        f"model = PeftModel.from_pretrained(base, {json.dumps(repo_id)}{subfolder})"
    )


def _usage_here(task: Task, repo_id: str, path: str, *, int8: bool) -> list[str]:
    """How to use what PEFT refuses, or would load without the adapters below it."""
    called = f"hf://{repo_id}/{path}" if path else f"hf://{repo_id} --name {task.name}"
    why = "PEFT refuses int8 files. `adapterhub` reads them as they are:"
    if task.stack:
        why = (
            f"It was trained on top of the adapters of {', '.join(task.stack)}, and answers wrongly without them. PEFT "
            "does not know of them. Pull those first, then this one:"
        )
    parts = [why, _block(f'adapterhub pull {called}\nadapterhub run -t {task.name} "…"')]
    if int8:
        parts += ["A float32 folder with the same values, which PEFT loads:", _block(_floats(task, repo_id, path))]
    return parts


def _floats(task: Task, repo_id: str, path: str) -> str:
    base = json.dumps(task.base_model)
    folder = f"Path(snapshot_download({json.dumps(repo_id)}))" + (f" / {json.dumps(path)}" if path else "")
    return (
        "from pathlib import Path\n\n"
        "from huggingface_hub import snapshot_download\n\n"
        "from adapterhub.adapter import dequantise, describe_base\n"
        "from adapterhub.model import load_base\n\n"
        f"base, _ = load_base({base})\n"
        f'dequantise({folder}, describe_base(base, {base}), Path("floats"))'
    )


def _block(text: str) -> str:
    # Indented, not fenced: a prompt may itself hold a fence.
    return textwrap.indent(text, "    ", lambda _: True)
