"""Every source gives the same rows, and every faulty row is named."""

import csv
import json
from pathlib import Path

import pytest
from workshop import card, rows

from adapterhub.errors import DataError, MissingExtraError
from adapterhub.training._examples import Example, check_rows, data_error
from adapterhub.training._rows import read_rows
from adapterhub.training._split import sample, split, without


def faults(task, source):
    return check_rows(task, read_rows(source, "data"))[1]


def examples(task, source):
    found, wrong = check_rows(task, read_rows(source, "data"))
    assert wrong == []
    return [vars(example) | {"where": ""} for example in found]


@pytest.mark.parametrize("head", ["generation", "classification", "token-classification", "regression"])
def test_all_sources_give_the_same_examples(head, tmp_path):
    datasets = pytest.importorskip("datasets")
    data, task = rows(head, 12), card(head)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, data[0].keys())
        writer.writeheader()
        writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in data)
    table = datasets.Dataset.from_list(data)
    table.to_parquet(str(tmp_path / "a.parquet"))
    table.save_to_disk(str(tmp_path / "folder"))
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "splits"))
    wanted = examples(task, data)
    for name in ("a.jsonl", "a.csv", "a.parquet", "folder", "splits"):
        assert examples(task, tmp_path / name) == wanted, name


def test_text_is_another_name_of_input_and_outputs_are_all_accepted():
    found = examples(
        card(), [{"text": "a", "outputs": ["x", "y"]}, {"input": "b", "output": "y", "outputs": ["x", "y"]}]
    )
    assert [example["answers"] for example in found] == [("x", "y"), ("y", "x")]


def test_class_numbers_of_datasets_become_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["red", "green"])}
    )
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features).save_to_disk(str(tmp_path / "d"))
    found = examples(card("classification"), tmp_path / "d")
    assert [example["label"] for example in found] == [1, 0]


def test_tokens_of_a_csv_may_be_split_by_spaces(tmp_path):
    (tmp_path / "a.csv").write_text("tokens,tags\nthe red,O B-COLOUR\n")
    assert examples(card("token-classification"), tmp_path / "a.csv")[0]["tags"] == (0, 1)


GENERATION = [
    ({"output": "x"}, "a row needs `input`"),
    ({"input": "a"}, "a row needs `output`"),
    ({"inptu": "a", "output": "x"}, "Did you mean `inptu`?"),
    ({"input": 3, "output": "x"}, "`input` is text. Found int 3"),
    ({"input": "  ", "output": "x"}, "`input` is not empty"),
    ({"input": "a", "output": ""}, "`output` is not empty"),
    ({"input": "a", "output": None}, "`output` is text. Found NoneType"),
    ({"input": "a", "outputs": "x"}, "`outputs` is a list of texts"),
    ({"input": "a", "outputs": ["x", " "]}, "`outputs` holds no empty answer"),
    (["a", "x"], "a row is a mapping of fields. Found list"),
]
CLASSIFICATION = [
    ({"input": "a", "label": "gren"}, "Did you mean `green`?"),
    ({"input": "a", "label": "zzz"}, "one of the card's (red, green, blue, black). Found `zzz`"),
    ({"input": "a", "label": 1}, "`label` is text. Found int 1"),
    ({"input": "a", "output": "red"}, "a row needs `label`"),
]
TOKENS = [
    ({"tokens": ["a", "b"], "tags": ["O"]}, "`tokens` and `tags` have one length. Found 2 and 1"),
    ({"tokens": ["a"], "tags": ["B-COLOR"]}, "Did you mean `B-COLOUR`?"),
    ({"tokens": "a b", "tags": ["O", "O"]}, "`tokens` is a list of texts"),
    ({"tokens": [], "tags": []}, "`tokens` is not empty"),
    ({"tokens": ["a", ""], "tags": ["O", "O"]}, "`tokens` holds no empty word"),
    ({"input": "a"}, "a row needs `tokens`"),
]
REGRESSION = [
    ({"input": "a", "value": "3"}, "`value` is a finite number. Found str '3'"),
    ({"input": "a", "value": True}, "Found bool True"),
    ({"input": "a", "value": float("nan")}, "Found float nan"),
    ({"input": "a"}, "a row needs `value`"),
]


@pytest.mark.parametrize(
    ("head", "cases"),
    [
        ("generation", GENERATION),
        ("classification", CLASSIFICATION),
        ("token-classification", TOKENS),
        ("regression", REGRESSION),
    ],
)
def test_every_faulty_row_is_named_at_once(head, cases):
    good = rows(head, 1)
    found = faults(card(head), [*good, *(row for row, _ in cases), *good])
    assert len(found) == len(cases)
    for number, (fault, (_, message)) in enumerate(zip(found, cases, strict=True), start=2):
        assert fault.startswith(f"data row {number}: ")
        assert message in fault
        assert fault[-1] in ".?"


def test_jsonl_faults_carry_file_and_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"input": "a", "output": "b"}\n\n{"input": "a", \n["a"]\n{"input": "", "output": "b"}\n')
    found = faults(card(), path)
    assert [fault.split(": ")[0] for fault in found] == [f"{path}:{line}" for line in (3, 4, 5)]
    assert "invalid JSON" in found[0]
    assert "Found list" in found[1]


def test_csv_faults_carry_the_line_where_a_row_begins(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('input,label\n"two\nlines",red\nx,pink\nx\nx,red,blue\n')
    found = faults(card("classification"), path)
    assert [fault.split(": ")[0] for fault in found] == [f"{path}:{line}" for line in (4, 5, 6)]


def test_many_faults_are_cut_and_counted():
    error = data_error(faults(card(), [{"input": ""}] * 33))
    assert len(str(error).splitlines()) == 21
    assert str(error).endswith("... and 13 more faulty rows.")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "no such data file"),
        ("a.txt", b"x", "ends in .jsonl, .csv, .parquet. Found `.txt`"),
        ("a.jsonl", b'{"input": "\xff\xfe"}', "UTF-8"),
        ("a.parquet", b"not parquet", "not a readable Parquet file"),
    ],
)
def test_a_bad_file_is_one_clear_error(name, content, message, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_rows(path, "data")


def test_a_folder_that_is_no_data_set(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="save_to_disk"):
        read_rows(tmp_path, "data")


def test_a_name_that_is_no_data_set(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no file, folder or data set of that name"):
        read_rows("no-such-data-set", "data")


def test_a_missing_split_names_those_that_are_there(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(rows("generation", 3))
    datasets.DatasetDict({"test": table}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataError, match=r"needs a split `train`\. Found test"):
        read_rows(tmp_path / "d", "data")


@pytest.mark.parametrize(("source", "module"), [("some-data-set", "datasets"), (Path("a.parquet"), "pyarrow")])
def test_an_extra_that_is_not_installed_is_named(source, module, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    monkeypatch.chdir(tmp_path)
    Path("a.parquet").write_bytes(b"")
    with pytest.raises(MissingExtraError, match=r"adapterhub\[data\]"):
        read_rows(source, "data")


def test_the_split_is_deterministic_and_keeps_equal_texts_together():
    found = [Example(str(n), f"text {n % 40}") for n in range(100)]
    kept, aside = split(found, 0.25, 200)
    assert (kept, aside) == split(found, 0.25, 200)
    assert len({example.text for example in aside}) == 10
    assert not {example.text for example in kept} & {example.text for example in aside}
    assert len(kept) + len(aside) == 100
    assert {e.text for e in split(found[::-1], 0.25, 200)[1]} == {e.text for e in aside}


def test_the_split_leaves_a_row_on_either_side():
    found = [Example("1", "a"), Example("2", "b")]
    assert [len(part) for part in split(found, 0.001, 200)] == [1, 1]
    assert [len(part) for part in split(found, 0.999, 200)] == [1, 1]
    with pytest.raises(DataError, match="needs 2 different inputs"):
        split(found[:1], 0.1, 200)


def test_without_compares_texts_with_white_space_folded():
    assert without([Example("1", "a  b"), Example("2", "c")], [Example("3", " a b")]) == [Example("2", "c")]


def test_a_sample_is_a_fixed_part_in_order():
    found = [Example(str(n), f"text {n}") for n in range(50)]
    chosen = sample(found, 7)
    assert len(chosen) == 7
    assert chosen == sorted(chosen, key=found.index) == sample(found, 7)
