"""In scripts as their users have them: TRL's own example and one line, the guide's snippets, two processes."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "trl.md").read_text(encoding="utf-8")
ROWS = [
    {
        "prompt": [{"role": "user", "content": f"What of {i}?"}],
        "chosen": [{"role": "assistant", "content": "It is fair." + "!" * i}],
        "rejected": [{"role": "assistant", "content": "No." * (1 + i % 3)}],
    }
    for i in range(8)
]


@pytest.fixture
def folder(tmp_path, tiny_model, tiny_tokenizer):
    """A model and a preference file on disk, as a script finds them."""
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "data" / "train.jsonl").write_text(text)
    return tmp_path


def run(command, folder, **environment):
    environment = (
        os.environ
        | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "hf")}
        | environment
    )
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def logged(folder, name="loss"):
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in history if name in entry]


def test_trls_own_example_script_and_one_line(folder):
    source = Path(importlib.util.find_spec("trl").origin).parent / "scripts" / "dpo.py"
    lines = source.read_text().splitlines(keepends=True)
    made = next(i for i, line in enumerate(lines) if line.startswith("    trainer = DPOTrainer("))
    end = next(i for i in range(made, len(lines)) if lines[i] == "    )\n")
    lines.insert(end + 1, '    import plo.trl; plo.trl.use(trainer, "tbpo_a")\n')
    (folder / "dpo.py").write_text("".join(lines))
    command = [
        sys.executable, "dpo.py", "--dataset_name", "data", "--model_name_or_path", "model", "--learning_rate", "5e-2",
        "--num_train_epochs", "6", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2",
        "--output_dir", "out", "--use_peft", "--lora_r", "4", "--logging_steps", "1", "--report_to", "none",
        "--use_cpu", "--save_steps", "4", "--bf16", "False", "--no_remove_unused_columns",
    ]  # fmt: skip
    run(command, folder)
    assert len(logged(folder / "out")) == 12
    assert all(torch.tensor(logged(folder / "out")).isfinite())
    assert logged(folder / "out")[-1] < -0.01  # tbpo_a starts at 0
    assert len(logged(folder / "out", "loss/margin")) == 12
    adapter = load_file(folder / "out" / "adapter_model.safetensors")
    assert any(values.abs().max() > 0 for name, values in adapter.items() if "lora_B" in name)
    assert "plo" in (folder / "out" / "README.md").read_text()


SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_the_guides_snippets_run(snippet, folder):
    assert len(SNIPPETS) == 2
    snippet = snippet.replace("org/my-model", "model").replace("my_pairs.jsonl", "data/train.jsonl")
    settings = 'DPOConfig("out", use_cpu=True, bf16=False, report_to="none", logging_steps=1'
    (folder / "script.py").write_text(snippet.replace('DPOConfig("out"', settings))
    run([sys.executable, "script.py"], folder)
    assert len(logged(folder / "out")) == 1


WORKER = """
import sys, torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer
import plo.trl

loss, out, micro, accumulation = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
model = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float64)
arguments = DPOConfig(
    out, per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation, learning_rate=5e-2,
    num_train_epochs=3, use_cpu=True, bf16=False, report_to="none", logging_steps=1, save_steps=6, max_grad_norm=0.5,
)
trainer = DPOTrainer(
    model, args=arguments, train_dataset=load_dataset("json", data_files="data/train.jsonl", split="train"),
    peft_config=LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]),
)
plo.trl.use(trainer, loss).train()
"""


@pytest.mark.parametrize("loss", [pytest.param("dpo + 0.2*sft", marks=pytest.mark.slow), "tbpo_q(baseline_size=16)"])
def test_two_processes_train_as_one(loss, folder):
    (folder / "worker.py").write_text(WORKER)
    run([sys.executable, "worker.py", loss, "one", 4, 1], folder)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", port]
    run([*launch, "worker.py", loss, "two", 2, 1], folder)
    run([sys.executable, "worker.py", loss, "accumulated", 1, 4], folder)
    for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen"):
        for other in ("two", "accumulated"):
            expected = pytest.approx(logged(folder / "one", name), abs=1e-6, rel=1e-6)
            assert logged(folder / other, name) == expected, (name, other)
    last = [load_file(folder / out / "checkpoint-6" / "adapter_model.safetensors") for out in ("one", "two")]
    own = [load_file(folder / out / "checkpoint-6" / "plo_loss.safetensors") for out in ("one", "two")]
    for one, two in (last, own):
        assert one.keys() == two.keys()
        for key in one:
            assert torch.allclose(one[key], two[key], atol=1e-6), key
