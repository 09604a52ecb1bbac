"""The model card: its front matter is valid and says only what the task says."""

from __future__ import annotations

import ast
import dataclasses
import textwrap

import pytest
from huggingface_hub import ModelCard

from adapterhub.errors import InputError
from adapterhub.hub import model_card
from adapterhub.task import Task

GRAMMAR = Task(
    "language/grammar",
    "Rewrite a sentence so that it is grammatical.",
    examples=("She go to school yesterday.", "```\nHe have a cat.\n```"),
    prompt="Correct: {text}\nAnswer:",
    base_model="acme/base-en",
    metrics={"exact_match": 0.93, "chrf": 88.5},
    datasets=("jfleg", "sentences made by scripts/make.py"),
    license="apache-2.0",
    tags=("gec", "english"),
)
SENTIMENT = Task(
    "language/sentiment", "Whether a review is good: yes or no.", head="classification", labels=("yes", "no")
)


def test_front_matter_carries_every_field_that_the_hub_searches():
    data = ModelCard(model_card(GRAMMAR)).data.to_dict()
    index = data.pop("model-index")
    assert data == {
        "library_name": "peft",
        "base_model": "acme/base-en",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["adapterhub", "gec", "english"],
        "datasets": ["jfleg"],
        "metrics": ["chrf", "exact_match"],
    }
    assert [entry["name"] for entry in index] == ["language/grammar"]
    (result,) = index[0]["results"]
    assert result["dataset"] == {"type": "jfleg", "name": "jfleg, sentences made by scripts/make.py"}
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == GRAMMAR.metrics


def test_nothing_is_stated_that_the_task_does_not_state():
    data = ModelCard(model_card(SENTIMENT)).data.to_dict()
    assert data == {"library_name": "peft", "pipeline_tag": "text-classification", "tags": ["adapterhub"]}


@pytest.mark.parametrize("base_model", ["_base", "../base", "base", "/models/base", ""])
def test_a_base_that_is_no_id_on_the_hub_stays_out_of_the_front_matter(base_model: str):
    card = ModelCard(model_card(Task("a/b", "Something.", base_model=base_model)))
    assert "base_model" not in card.data.to_dict()


@pytest.mark.parametrize(
    ("head", "labels", "tag"),
    [
        ("generation", (), "text-generation"),
        ("classification", ("a", "b"), "text-classification"),
        ("token-classification", ("O", "B-PER"), "token-classification"),
        ("regression", (), "text-classification"),
    ],
)
def test_every_head_has_its_pipeline_and_code_that_parses(head: str, labels: tuple[str, ...], tag: str):
    task = Task("a/b", "Something.", head=head, labels=labels, base_model="acme/base")
    card = ModelCard(model_card(task, repo_id="acme/tasks", path_in_repo="a/b"))
    assert card.data.pipeline_tag == tag
    code = textwrap.dedent(card.text.partition("## Use\n")[2])
    ast.parse(code)
    assert 'PeftModel.from_pretrained(base, "acme/tasks", subfolder="a/b")' in code
    assert ("num_labels=2" in code) == bool(labels)


def test_the_text_shows_prompt_examples_and_numbers():
    text = ModelCard(model_card(GRAMMAR)).text
    assert "# language/grammar\n\nRewrite a sentence" in text
    assert "    Correct: {text}\n    Answer:" in text
    assert "    ```\n    He have a cat.\n    ```" in text
    assert "- exact_match: 0.93" in text
    assert "## Use" not in text


def test_indented_prompts_keep_their_spaces_and_quotes_do_not_break_the_code():
    task = Task("a/b", "Something.", prompt="  two\n    four {text}", base_model='acme/"base"')
    text = ModelCard(model_card(task, repo_id="acme/tasks")).text
    assert "      two\n        four {text}" in text
    ast.parse(textwrap.dedent(text.partition("## Use\n")[2]))


def test_text_that_looks_like_front_matter_changes_nothing():
    task = Task(
        "a/b", "One.\n---\nlicense: mit\n---\n", prompt="---\n{text}", license="apache-2.0", tags=("x: y", "- z")
    )
    data = ModelCard(model_card(task)).data.to_dict()
    assert data["license"] == "apache-2.0"
    assert data["tags"] == ["adapterhub", "x: y", "- z"]


def test_a_malformed_repository_is_refused():
    with pytest.raises(InputError, match="A repository is named"):
        model_card(GRAMMAR, repo_id="grammar")


def test_int8_is_said_and_its_code_parses():
    task = dataclasses.replace(GRAMMAR, tags=("gec",))
    card = ModelCard(model_card(task, repo_id="acme/tasks", path_in_repo="language/grammar", int8=True))
    data = card.data.to_dict()
    assert data["library_name"] == "adapterhub"
    assert data["tags"] == ["adapterhub", "int8", "gec"]
    assert "- Stored as: int8" in card.text
    use = card.text.partition("## Use\n")[2]
    assert "    adapterhub pull hf://acme/tasks/language/grammar\n    adapterhub run -t language/grammar" in use
    code = textwrap.dedent(use[use.index("    from pathlib") :])
    ast.parse(code)
    assert 'Path(snapshot_download("acme/tasks")) / "language/grammar"' in code
    assert "PeftModel" not in use
    assert "int8" not in model_card(task, repo_id="acme/tasks", path_in_repo="language/grammar")


def test_at_the_root_of_a_repository_the_name_is_given():
    text = model_card(GRAMMAR, repo_id="acme/tasks", int8=True)
    assert "adapterhub pull hf://acme/tasks --name language/grammar\n" in text
    assert 'Path(snapshot_download("acme/tasks")), describe_base' in text


def test_what_stands_on_others_says_so_and_shows_no_code_that_loads_it_alone():
    task = dataclasses.replace(GRAMMAR, stack=("language",))
    text = ModelCard(model_card(task, repo_id="acme/tasks", path_in_repo="language/grammar")).text
    assert "- Stands on the adapters of: language" in text
    assert "trained on top of the adapters of language" in text
    assert "PeftModel" not in text
    assert "dequantise" not in text
