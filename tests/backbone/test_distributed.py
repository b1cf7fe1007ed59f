"""Two processes give what one gives: tiny float64 models on two CPU processes (gloo), DDP and FSDP2."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

WORKER = Path(__file__).with_name("distributed_worker.py")
_spec = importlib.util.spec_from_file_location("distributed_worker", WORKER)
worker = sys.modules["distributed_worker"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(worker)
Case = worker.Case

STATE = "kto + bco + beta_dpo(keep=0.5) + epsilon_dpo"  # updated before the step (by a pass of its own, or in the only one) and after
CASES = [
    Case("lora"),
    Case("full", peft="full"),
    Case("packed", packed=True, pairs=10),
    Case("accumulated", pairs=7, train={"micro_batch_size": 1}),
    Case("kl", "tdpo2", peft="full"),
    Case("tokens", "dpo + 0.2*sft", pairs=7),
    Case("own-parameters", "tbpo_q"),
    Case("resumed", "tbpo_q", stop_at=3, pairs=10),
    Case("state", STATE, pairs=7, train={"micro_batch_size": 1}),
    Case("state-resumed", STATE, stop_at=2),
    Case("second-cell", peft="full", twice=True),
]
SHARDED = [
    Case("lora"),
    Case("kl", "tdpo2", peft="full"),
    Case("kl-chunked", "tdpo2", peft="full", chunk=64),
    Case("gemma2", "tdpo2", peft="full", model="gemma2"),
    Case("resumed", "tbpo_q", peft="full", stop_at=3, pairs=10),
    Case("second-cell", twice=True),
]
MORE_SHARDED = [  # minutes, where a CPU is slow
    Case("full", peft="full"),
    Case("packed", packed=True, pairs=10),
    Case("accumulated", peft="full", pairs=7, train={"micro_batch_size": 1}),
    Case("kl-online", "tdpo2", peft="full", hidden=False),
    Case("kl-online-lora", "tdpo2", hidden=False),
    Case("own-parameters", "tbpo_q"),
    Case("state", STATE, stop_at=2, train={"micro_batch_size": 1}),
    Case("second-cell-full", peft="full", twice=True),
]
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # as accelerate launch sets it
WRONG = [
    Case("nan", "breaks"),
    Case("infinite", "infinite"),
    Case("batch-level", "ranks"),
    Case("indivisible", train={"batch_size": 3}),
]


@pytest.fixture(scope="module")
def launched(tiny_models):
    """The outcomes of all cases, of both processes: one launch, as importing takes longer than training."""
    return _launch(tiny_models, "ddp", [*CASES, *WRONG], {})


@pytest.fixture(scope="module")
def sharded(tiny_models):
    return _launch(tiny_models, "fsdp", [*SHARDED, *WRONG], FSDP)


@pytest.fixture(scope="module")
def more_sharded(tiny_models):
    return _launch(tiny_models, "more", MORE_SHARDED, FSDP)


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory, tiny_llama, tiny_pairs):
    """A folder with a tiny model and pairs."""
    folder = tmp_path_factory.mktemp("distributed")
    tiny_llama().save_pretrained(folder / "llama")
    _tiny_gemma2().save_pretrained(folder / "gemma2")
    torch.save(tiny_pairs(10), folder / "pairs.pt")
    return folder


def _tiny_gemma2() -> Gemma2ForCausalLM:
    """Tied head, soft-capped logits and scores."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=61, hidden_size=16, intermediate_size=32, num_hidden_layers=2, head_dim=8)
    heads = dict(num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128, sliding_window=16)
    config = Gemma2Config(**sizes, **heads, initializer_range=0.3, final_logit_softcapping=3.0, eos_token_id=1)
    return Gemma2ForCausalLM(config).double().eval()


def _launch(folder: Path, name: str, cases: list[Case], environment: dict[str, str]) -> list[dict]:
    (folder / f"{name}.json").write_text(json.dumps([asdict(case) for case in cases]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(WORKER), str(folder), name],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in (0, 1)]


def assert_same_training(got: dict, expected: dict):
    assert "error" not in expected, expected["error"]
    assert "error" not in got, got["error"]
    assert len(got["curve"]) == len(expected["curve"]) > 3
    for ours, theirs in zip(got["curve"], expected["curve"], strict=True):
        # transformers' epoch counts forward passes of one process: 4 of 7 in one, 2 of 4 in two.
        names = {name for name in theirs if not name.startswith(("tokens_per", "peak", "train_", "epoch"))}
        assert names <= ours.keys()
        for name in names:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-6, rel=1e-6), f"{name} of step {theirs['step']}"
    assert got["weights"].keys() == expected["weights"].keys()
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(got["weights"][name], weight, atol=1e-6, rtol=1e-6)
    losses = [entry["loss"] for entry in expected["curve"] if "loss" in entry]
    assert max(losses) - min(losses) > 0.1  # a policy that moves


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_processes_give_what_one_gives(case, launched, tiny_models, tmp_path):
    alone = worker.run(case, tiny_models, tmp_path)
    for outcome in launched:
        assert_same_training(outcome[case.name], alone)


@pytest.mark.parametrize("case", SHARDED, ids=lambda case: case.name)
def test_two_sharded_processes_give_what_one_gives(case, sharded, tiny_models, tmp_path):
    alone = worker.run(case, tiny_models, tmp_path)
    for outcome in sharded:
        assert_same_training(outcome[case.name], alone)


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE_SHARDED, ids=lambda case: case.name)
def test_more_sharded_processes_give_what_one_gives(case, more_sharded, tiny_models, tmp_path):
    test_two_sharded_processes_give_what_one_gives(case, more_sharded, tiny_models, tmp_path)


def test_the_head_is_gathered_once_a_pass_whatever_the_chunks(sharded):
    for outcome in sharded:
        assert outcome["kl-chunked"]["sharded"]
        assert outcome["kl-chunked"]["collectives"] == outcome["kl"]["collectives"] > 50


@pytest.fixture(params=["launched", "sharded"])
def outcomes(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("name", ["nan", "infinite"])
def test_a_non_finite_loss_stops_every_process_and_names_the_row_of_whichever_had_it(name, outcomes):
    errors = [outcome[name]["error"] for outcome in outcomes]
    assert errors[0] == errors[1]
    assert errors[0].startswith("NonFiniteLoss") and ", rows: row 3. " in errors[0]


def test_a_batch_level_loss_is_refused(outcomes):
    assert all(
        "several processes would show it 2 of 4: start one process" in o["batch-level"]["error"] for o in outcomes
    )


def test_a_batch_that_the_processes_cannot_share_is_refused(outcomes):
    assert all("set a multiple of 2, or start another number" in o["indivisible"]["error"] for o in outcomes)
