"""The GPU script: its logic at toy size without a GPU, and what a killed part leaves."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    spec = importlib.util.spec_from_file_location("gpu", FOLDER / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in ("gpu_parts", "sampling"):
        sys.modules.pop(name, None)


@pytest.fixture
def patched(monkeypatch):
    """What the parts exchange in plo is put back."""
    for name in ("plo.backbone.trainable.model_identity", "plo.backbone.model.OnDisk"):
        module, _, attribute = name.rpartition(".")
        monkeypatch.setattr(name, getattr(importlib.import_module(module), attribute))


def test_every_part_of_the_gpu_script_runs_at_toy_size(gpu, patched, monkeypatch, tmp_path, capsys):
    kinds = {(part[1], part[2].get("peft"), part[2].get("system")): part for part in reversed(gpu.PARTS)}
    assert len(kinds) == 8
    monkeypatch.setattr(gpu, "PARTS", tuple(kinds.values()))
    gpu.main(["--toy", "--inline", "--out", str(tmp_path / "gpu.json")])
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    errors = {name: found["error"] for name, found in parts.items() if "error" in found}
    [(name, error)] = errors.items()
    assert name == "sampling of 8 adapters by vLLM, 1B" and "needs the package vllm" in error
    assert parts["chunked head, 1B"]["largest_relative_difference_log_probs"] < 0.02
    sampled = parts["sampling of 8 adapters, 1B"]
    assert (sampled["adapters"], sampled["sequences"]) == (8, 32) and sampled["together_seconds"] > 0
    plo, trl = parts["plo, LoRA, 1B"], parts["TRL as shipped, LoRA, 1B"]
    assert plo["steps"] == trl["steps"] == 2 and plo["mfu"] > 0
    assert plo["first_loss"] == pytest.approx(trl["first_loss"], abs=1e-3) == pytest.approx(0.6931, abs=1e-3)
    assert "TRL as shipped, full, 1B: pairs_per_step 8" in capsys.readouterr().out


def test_a_killed_part_keeps_what_it_measured(gpu, monkeypatch, tmp_path):
    script = tmp_path / "part.py"
    monkeypatch.setattr(gpu, "__file__", str(script))
    args, found, results = gpu.parsed(["--out", str(tmp_path / "gpu.json")]), [], {"machine": {}}
    for body, said in (
        ("print('@{\"a\": 1}', flush=True); import time; time.sleep(600)", {"a": 1, "error": "killed after 4 s"}),
        ("raise SystemExit('no memory')", {"error": "no memory"}),
    ):
        script.write_text(body)
        gpu.process(args, 0, "one", 4.0, lambda name, told: found.append((name, told)), results)
        assert found[-1] == ("one", said)


def test_a_part_for_which_no_time_is_left_says_so(gpu, tmp_path, capsys):
    gpu.main(["--toy", "--inline", "--minutes", "0.1", "--only", "8B", "--out", str(tmp_path / "gpu.json")])
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert len(parts) == 4 and all("not run" in found["error"] for found in parts.values())
