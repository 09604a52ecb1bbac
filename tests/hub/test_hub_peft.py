"""Anyone with bare PEFT can load what was pushed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from conftest import tiny_llama
from hub_client import Client
from hub_files import README
from hub_server import HubServer
from peft import LoraConfig, PeftModel, get_peft_model

pytest_plugins = ("hub_fixtures",)

BARE_PEFT = """
import sys, torch
from conftest import tiny_llama
from peft import PeftModel
model = PeftModel.from_pretrained(tiny_llama(), sys.argv[1], subfolder="language/grammar").eval()
with torch.no_grad():
    torch.save(model(torch.arange(2, 12)[None]).logits, sys.argv[2])
"""


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(2, 12)[None]).logits


def test_bare_peft_loads_what_was_pushed_and_what_was_pulled(server: HubServer, hub: Client, tmp_path: Path):
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(), LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    expected = logits(model)
    assert not torch.allclose(logits(tiny_llama()), expected)

    model.save_pretrained(tmp_path / "saved")
    hub("push", tmp_path / "saved", "acme/peft", path_in_repo="language/grammar", card=README)
    hub("pull", "acme/peft", path_in_repo="language/grammar", into=tmp_path / "pulled")
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_llama(), tmp_path / "pulled").eval()), expected)

    settings = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    environment = {**os.environ, **settings, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", BARE_PEFT, "acme/peft", tmp_path / "logits.pt"], env=environment, check=True)
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), expected)
