"""What is refused: spoiled files, other bases, unsupported options; each error lists every mismatch."""

from __future__ import annotations

import json
import shutil
import struct

import pytest
import torch
from adapter_folders import (
    CONFIG,
    SEAL,
    WEIGHTS,
    bottleneck,
    edit_config,
    edit_tensors,
    faults_of,
    lora,
    trained,
    unsealed,
)
from conftest import tiny_bert, tiny_gpt2, tiny_llama
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaForSequenceClassification

from adapterhub.adapter import content_hash, describe_base, read_adapter, seal
from adapterhub.errors import IncompatibleAdapterError, IntegrityError

ROOT = "base_model.model.model."


@pytest.fixture(scope="module")
def base():
    return describe_base(tiny_llama(), "acme/tiny")


@pytest.fixture(scope="module")
def sealed(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sealed")
    trained(tiny_llama(), lora()).save_pretrained(folder)
    seal(folder, base)
    return folder


@pytest.fixture
def folder(sealed, tmp_path):
    """A sealed adapter that a test may spoil."""
    return shutil.copytree(sealed, tmp_path / "adapter")


# Another base


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
def test_a_two_layer_adapter_does_not_load_into_six_layers(targets, base, tmp_path):
    six = describe_base(tiny_llama(layers=6), "acme/tiny")
    peft = trained(tiny_llama(), lora(target_modules=targets))
    peft.save_pretrained(tmp_path)
    seal(tmp_path, base)
    faults = faults_of(tmp_path, six)
    assert any(fault.startswith(f"fingerprint should be {six.fingerprint}") for fault in faults)
    unsealed(tmp_path)
    plain = faults_of(tmp_path, six, adopt=True)
    if targets == "all-linear":
        assert "blocks 0 to 1 one by one" in plain[0]
        assert "6" in plain[0]
    else:
        for found in (faults, plain):
            missing = [fault for fault in found if "lora_A, lora_B missing" in fault]
            assert len(missing) == 8
            assert missing[0].startswith("layers.2.self_attn.q_proj: ")


def test_adapting_only_the_first_blocks_on_purpose_is_read_once_sealed(tmp_path):
    six = describe_base(tiny_llama(layers=6), "acme/tiny")
    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(2)]
    trained(tiny_llama(layers=6), lora(target_modules=names)).save_pretrained(tmp_path)
    seal(tmp_path, six)
    assert len(read_adapter(tmp_path, six).modules) == 2


def test_another_models_adapter_lists_every_mismatch(base, tmp_path):
    other = tiny_llama(layers=3, hidden=48)
    other_base = describe_base(other, "acme/other")
    trained(other, lora()).save_pretrained(tmp_path)
    seal(tmp_path, other_base)
    faults = faults_of(tmp_path, base)
    assert faults[0] == "base_model should be acme/tiny. Found acme/other."
    assert faults[1].startswith("fingerprint should be ")
    assert "layers.0.self_attn.q_proj: lora_A should have shape (4, 32). Found (4, 48)." in faults
    assert "layers.0.self_attn.q_proj: lora_B should have shape (32, 4). Found (48, 4)." in faults
    assert any(
        f.startswith("layers.2.self_attn.v_proj: the base has no such linear module or token embedding.")
        for f in faults
    )
    # Two of identity, two a module in the two shared blocks, one a module in the third.
    assert len(faults) == 2 + 2 * 4 + 2


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_bert])
def test_another_architectures_adapter_names_all_its_modules(make, base, tmp_path):
    model = make()
    trained(model, bottleneck(task_type=None)).save_pretrained(tmp_path)
    faults = faults_of(unsealed(tmp_path), base, adopt=True)
    assert sum("the base has no such linear module" in fault for fault in faults) == 4
    assert "`target_modules` names no linear module of the base." in faults


def test_the_same_architecture_with_other_weights_is_told_by_its_fingerprint(sealed):
    faults = faults_of(sealed, describe_base(tiny_llama(seed=1), "acme/tiny"))
    assert len(faults) == 1
    assert faults[0].startswith("fingerprint should be ")


# Spoiled files


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_any_flipped_bit_is_found(name, folder, base):
    data = bytearray((folder / name).read_bytes())
    for position in range(0, len(data), max(1, len(data) // 25)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        (folder / name).write_bytes(flipped)
        with pytest.raises(IntegrityError, match=r"sha256|JSON"):
            read_adapter(folder, base)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, SEAL])
@pytest.mark.parametrize("keep", [0, 7, 100, -3])
def test_a_truncated_file_is_found(name, keep, folder, base):
    path = folder / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(IntegrityError):
        read_adapter(folder, base)


@pytest.mark.parametrize("keep", [0, 7, 100, 3000, -1])
def test_a_truncated_plain_folder_is_found_without_a_seal(keep, folder, base):
    unsealed(folder)
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:keep])
    with pytest.raises(IntegrityError, match=r"whole safetensors|JSON"):
        read_adapter(folder, base, adopt=True)
    (folder / WEIGHTS).write_bytes(data + b"\0")
    with pytest.raises(IntegrityError, match="whole safetensors"):
        read_adapter(folder, base, adopt=True)


def test_the_hash_of_a_card_is_verified(folder, base):
    digest = content_hash(folder)
    assert read_adapter(folder, base, sha256=digest).sha256 == digest
    with pytest.raises(IntegrityError, match=digest):
        read_adapter(folder, base, sha256="0" * 64)


def test_every_file_counts_in_the_content_hash(folder):
    hashes = {content_hash(folder)}
    for name in (CONFIG, WEIGHTS, SEAL):
        path = folder / name
        data = path.read_bytes()
        path.write_bytes(data + b" ")
        hashes.add(content_hash(folder))
        path.write_bytes(data)
    assert len(hashes) == 4
    assert content_hash(folder) in hashes
    (folder / "README.md").write_text("other files do not count")
    assert content_hash(folder) in hashes


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, SEAL])
def test_a_missing_file_is_named(name, folder, base):
    (folder / name).unlink()
    with pytest.raises(IntegrityError, match=f"{name} is missing"):
        read_adapter(folder, base)


def test_a_missing_folder_is_named(tmp_path, base):
    with pytest.raises(IntegrityError, match="Found none at"):
        read_adapter(tmp_path / "nowhere", base)


def test_a_pickle_is_refused_and_never_opened(folder, base):
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").mkdir()  # opening it would raise another error
    with pytest.raises(IntegrityError, match=r"Found adapter_model\.bin, a pickle"):
        read_adapter(folder, base)


def test_an_unknown_seal_format_and_a_broken_seal_are_refused(folder, base):
    fields = json.loads((folder / SEAL).read_text())
    (folder / SEAL).write_text(json.dumps(fields | {"format": 3}))
    with pytest.raises(IntegrityError, match=r"`format` should be 1 or 2\. Found 3"):
        read_adapter(folder, base)
    (folder / SEAL).write_text(json.dumps(fields | {"files": None}))
    with pytest.raises(IntegrityError, match="sha256 None"):
        read_adapter(folder, base)
    (folder / SEAL).write_text("[]")
    with pytest.raises(IntegrityError, match="Found list"):
        read_adapter(folder, base)


# Headers that do not describe their file


def with_header(folder, change) -> None:
    path = folder / WEIGHTS
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    text = change(header)
    text = (text if isinstance(text, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


KEY = f"{ROOT}layers.0.self_attn.q_proj.lora_A.weight"
HEADERS = {
    "overlap": lambda h: h[KEY].update(data_offsets=[512, 1024]),
    "short": lambda h: h[KEY].update(shape=[4, 31]),
    "negative": lambda h: h[KEY].update(shape=[-4, -32]),
    "boolean": lambda h: h[KEY].update(shape=[True, 128]),
    "dtype": lambda h: h[KEY].update(dtype="object"),
    "field": lambda h: h[KEY].pop("dtype"),
    "extra": lambda h: h[KEY].update(pickle=1),
    "entry": lambda h: h.update({KEY: 3}),
    "gap": lambda h: h.pop(KEY) and None,
    "three": lambda h: h[KEY].update(data_offsets=[0, 1, 2]),
    "twice": lambda h: json.dumps(h)[:-1] + f', "{KEY}": ' + json.dumps(h[KEY]) + "}",
    "list": lambda h: "[]",
    "text": lambda h: "\x80",
    "deep": lambda h: "[" * 100_000,
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_does_not_describe_the_file_is_refused(case, folder, base):
    unsealed(folder)
    with_header(folder, HEADERS[case])
    with pytest.raises(IntegrityError):
        read_adapter(folder, base, adopt=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_plain_folder_is_read_or_refused_by_our_errors(data, sealed, base, tmp_path):
    shutil.copytree(sealed, tmp_path, dirs_exist_ok=True)
    unsealed(tmp_path)
    path = tmp_path / data.draw(st.sampled_from([CONFIG, WEIGHTS]))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, min(len(raw) - 1, 3000)))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        adapter = read_adapter(tmp_path, base, adopt=True)
    except (IntegrityError, IncompatibleAdapterError):
        return
    assert all(torch.isfinite(factors.up).all() for factors in adapter.modules.values())


# Keys, shapes and values


def spoiled(folder, base, change) -> list[str]:
    edit_tensors(unsealed(folder), change)
    return faults_of(folder, base, adopt=True)


def test_missing_and_unexpected_keys_are_listed_together(folder, base):
    def change(tensors):
        del tensors[KEY]
        for part in ("lora_A", "lora_B"):
            del tensors[f"{ROOT}layers.1.self_attn.v_proj.{part}.weight"]
            tensors[f"{ROOT}layers.1.self_attn.k_proj.{part}.weight"] = torch.zeros(1)
        tensors["stranger"] = torch.zeros(2)
        tensors[f"{ROOT}layers.0.self_attn.q_proj.lora_magnitude_vector"] = torch.zeros(32)
        tensors[f"{ROOT}embed_tokens.weight"] = torch.zeros(2)
        tensors["base_model.model.score.weight"] = torch.zeros(2, 32)

    faults = spoiled(folder, base, change)
    expected = [
        "layers.0.self_attn.q_proj: lora_A missing.",
        "layers.1.self_attn.k_proj: lora_A, lora_B unexpected, since `target_modules` does not name it.",
        "layers.1.self_attn.v_proj: lora_A, lora_B missing, though `target_modules` names it.",
        "base_model.model.score.weight: unexpected without a task_type that has a head (SEQ_CLS, TOKEN_CLS).",
        "stranger: unexpected, since PEFT's keys begin with base_model.model.",
    ]
    assert set(expected) <= set(faults)
    name = "layers.0.self_attn.q_proj"
    assert f"{name}: lora_magnitude_vector unexpected, since the configuration asks for lora_A, lora_B there." in faults
    assert any("embed_tokens.weight: unexpected weights of the base itself" in fault for fault in faults)
    assert len(faults) == 7


def test_every_wrong_shape_and_dtype_is_listed(folder, base):
    def change(tensors):
        for key, value in tensors.items():
            tensors[key] = value.double() if "lora_A" in key else value[:, :2].contiguous()

    faults = spoiled(folder, base, change)
    assert len(faults) == 8
    assert "layers.1.self_attn.v_proj: lora_A should be F32, F16 or BF16. Found F64." in faults
    assert "layers.1.self_attn.v_proj: lora_B should have shape (16, 4). Found (16, 2)." in faults


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(value, folder, base):
    def change(tensors):
        tensors[KEY][1, 2] = value
        tensors[KEY.replace("lora_A", "lora_B").replace("layers.0", "layers.1")][0, 0] = value

    assert spoiled(folder, base, change) == [
        "layers.0.self_attn.q_proj: lora_A holds NaN or infinity.",
        "layers.1.self_attn.q_proj: lora_B holds NaN or infinity.",
    ]
    with pytest.raises(IncompatibleAdapterError, match="holds NaN"):
        seal(folder, base)
    assert not (folder / SEAL).exists()


def head_folder(tmp_path, base):
    torch.manual_seed(2)
    config = tiny_llama().config
    config.num_labels = 3
    trained(LlamaForSequenceClassification(config), lora(task_type="SEQ_CLS")).save_pretrained(tmp_path)
    return unsealed(tmp_path)


SCORE, CLASSIFIER = "base_model.model.score", "base_model.model.classifier"
HEADS = {
    "should bring one head, classifier or score. Found none": lambda t: t.pop(f"{SCORE}.weight"),
    "(labels, 32). Found (3, 31)": lambda t: t.update({f"{SCORE}.weight": torch.ones(3, 31)}),
    "(labels, 32). Found (0, 32)": lambda t: t.update({f"{SCORE}.weight": torch.ones(0, 32)}),
    "score.bias should have shape (3,)": lambda t: t.update({f"{SCORE}.bias": torch.ones(2)}),
    "Found classifier.weight, score": lambda t: t.update({f"{CLASSIFIER}.weight": torch.ones(3, 32)}),
    "a head is one linear module": lambda t: t.update({f"{SCORE}.out_proj.weight": torch.ones(3, 3)}),
    "Found F64": lambda t: t.update({f"{SCORE}.weight": torch.ones(3, 32).double()}),
    "score.weight holds NaN": lambda t: t[f"{SCORE}.weight"].fill_(float("nan")),
}


@pytest.mark.parametrize("fault", HEADS)
def test_a_head_that_does_not_fit_is_refused(fault, base, tmp_path):
    head_folder(tmp_path, base)
    assert read_adapter(tmp_path, base, adopt=True).head.weight.shape == (3, 32)
    edit_tensors(tmp_path, HEADS[fault])
    (found,) = faults_of(tmp_path, base, adopt=True)
    assert fault in found


def test_copies_of_the_embeddings_are_refused_with_a_remedy(base, tmp_path):
    peft = trained(tiny_llama(), lora(target_modules=["q_proj", "lm_head"]))
    peft.save_pretrained(tmp_path, save_embedding_layers=True)
    faults = faults_of(unsealed(tmp_path), base, adopt=True)
    assert faults
    assert all("save_embedding_layers=False" in fault for fault in faults)


# Sealing and adopting


def test_a_plain_folder_needs_adoption_and_the_bases_name(folder, base):
    unsealed(folder)
    with pytest.raises(IntegrityError, match="seal"):
        read_adapter(folder, base)
    adapter = read_adapter(folder, base, adopt=True)
    assert adapter.fingerprint == ""
    assert adapter.base_model == "acme/tiny"
    for name in (None, "", "acme/other"):
        edit_config(folder, base_model_name_or_path=name)
        (fault,) = faults_of(folder, base, adopt=True)
        assert fault.startswith("base_model_name_or_path should be acme/tiny. Found ")


def test_adoption_still_verifies_a_seal(folder, base):
    edit_config(folder, lora_alpha=32)
    with pytest.raises(IntegrityError, match="sha256"):
        read_adapter(folder, base, adopt=True)


def test_sealing_again_changes_nothing_and_leaves_no_other_file(folder, base):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert seal(folder, base) == content_hash(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_adapter_is_not_sealed_to_a_base_that_it_does_not_fit(folder, base):
    before = (folder / SEAL).read_bytes()
    with pytest.raises(IncompatibleAdapterError):
        seal(folder, describe_base(tiny_llama(layers=6), "acme/tiny"))
    assert (folder / SEAL).read_bytes() == before
