"""An adapter made elsewhere is taken in when it names the base by its folder."""

import json

import pytest
from conftest import tiny_llama
from peft import LoraConfig, get_peft_model

from adapterhub.adapter import describe_base, read_adapter
from adapterhub.errors import IncompatibleAdapterError


def test_an_adapter_trained_on_the_bases_own_folder_is_adopted(tmp_path):
    base_folder = tmp_path / "base"
    base_folder.mkdir()
    (base_folder / "adapterhub.json").write_text('{"id": "tests/base"}')
    model = tiny_llama()
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    folder = tmp_path / "adapter"
    get_peft_model(model, config).save_pretrained(folder)
    fields = json.loads((folder / "adapter_config.json").read_text())
    fields["base_model_name_or_path"] = str(base_folder)
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    assert read_adapter(folder, describe_base(tiny_llama(), "tests/base"), adopt=True).rank == 2
    with pytest.raises(IncompatibleAdapterError, match="base_model_name_or_path should be tests/other"):
        read_adapter(folder, describe_base(tiny_llama(), "tests/other"), adopt=True)
