"""`plo push` of whole models, of adapters after an SFT stage, and of adapters on an adapter: loaded in a process without plo."""

import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from plo.backbone.pretrained import pretrained
from plo.cli import app
from plo.experiment.matrix import compare
from plo.tracking import Tracker

TEXT = "Case 1: fine"
LOAD = """
import json, sys
import torch
from {module} import {kind}
from transformers import AutoTokenizer
model, tokenizer = {kind}.from_pretrained(sys.argv[1]).float(), AutoTokenizer.from_pretrained(sys.argv[1])
assert "plo" not in sys.modules
with torch.no_grad():
    print(json.dumps(model(**tokenizer({text!r}, return_tensors="pt")).logits[0].tolist()))
"""


def adapter(folder):
    """Save an adapter that changes the tiny model, with a name of its base that holds from this folder."""
    torch.manual_seed(3)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained("tiny"), config).save_pretrained(folder)


@pytest.mark.parametrize("kind", ["full", "sft", "adapter"])
def test_what_is_pushed_computes_what_was_trained(kind, tiny, tmp_path):
    settings = {"train.lr": 0.05, "train.steps": 2, "losses": ["sft"] if kind == "full" else ["dpo"], "eval_at": [1.0]}
    if kind == "full":
        settings |= {"model": {"name": "tiny", "peft": "full"}, "losses": ["dpo"]}
    elif kind == "sft":
        settings |= {"stages": ["sft", "preference"], "sft": {"steps": 2, "lr": 0.05}}
    else:
        adapter(tmp_path / "first")
        settings |= {"model": {"name": "first"}}
    assert not compare(tiny(**settings)).failed
    done = CliRunner().invoke(app, ["push", "tiny", "dpo", "--out", "pushed"])
    assert done.exit_code == 0, done.output
    (cell,) = (one for one in Tracker(create=False).cells() if one.name == "dpo seed 0")
    tokens = AutoTokenizer.from_pretrained("tiny")(TEXT, return_tensors="pt")
    base = pretrained(AutoModelForCausalLM, settings.get("model", {"name": "tiny"})["name"], torch.float32)[0]
    with torch.no_grad():
        start = base(**tokens).logits[0]
        if kind == "full":
            trained = AutoModelForCausalLM.from_pretrained(cell.folder)
        else:
            trained = PeftModel.from_pretrained(base, cell.folder)
        expected = trained(**tokens).logits[0]
    assert (expected - start).abs().max() > 1e-3, "it was trained"

    whole = not (tmp_path / "pushed" / "adapter_config.json").exists()
    names = (
        {"module": "transformers", "kind": "AutoModelForCausalLM"}
        if whole
        else {"module": "peft", "kind": "AutoPeftModelForCausalLM"}
    )
    command = [sys.executable, "-c", LOAD.format(text=TEXT, **names), "pushed"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    atol = 1e-5 * max(1.0, float(expected.abs().max()))  # merged weights are rounded once more
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), expected, rtol=0, atol=atol)
    card = (tmp_path / "pushed" / "README.md").read_text()
    assert f"from {names['module']} import {names['kind']}" in card
    told = {file.name: file.read_text() for file in (tmp_path / "pushed").iterdir() if file.suffix in (".json", ".md")}
    assert {name for name, text in told.items() if str(tmp_path) in text} <= {"adapter_config.json"}
