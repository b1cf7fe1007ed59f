"""Models, stages and token scores reach another machine through the store alone."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pandas as pd
import pytest
from staged import trained_bench

from plo import caches
from plo.config import ModelConfig, load_experiment
from plo.experiment import scores
from plo.experiment.evaluations import evaluate_recorded
from plo.experiment.matrix import compare
from plo.experiment.stages import Stages, is_recorded
from plo.scorers import get_scorer
from plo.tracking import Tracker

POCKET = {
    "data": "pocket", "data.options": {"pairs": 64}, "losses": ["dpo"], "seeds": [0], "name": "elsewhere",
    "stages": ["sft", "preference"], "sft": {"steps": 3}, "train.steps": 4, "train.lr": 1e-3,
    "evaluation": {"prompts": 4, "samples": 2, "max_new_tokens": 8, "suite": ["credit"]},
}  # fmt: skip


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that goes to a machine of some name: to its working folder, and its own PLO_HOME."""

    def go(name):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        monkeypatch.setenv("PLO_HOME", str(folder / "home"))
        monkeypatch.chdir(folder)
        return folder

    return go


@contextlib.contextmanager
def served(folder):
    """Serve a store and its artifacts over HTTP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = [f"--backend-store-uri=sqlite:///{folder}/server.db", f"--artifacts-destination={folder}/artifacts"]
    command = [sys.executable, "-m", "mlflow", "server", *places, f"--port={port}", "--workers=1"]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        uri, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 100
        while True:
            with contextlib.suppress(OSError):
                urlopen(f"{uri}/health").close()
                break
            assert server.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield uri
    finally:
        server.terminate()
        server.wait(30)


def findings(uri):
    cells = Tracker(uri, create=False).cells("elsewhere")
    return {cell.name: (cell.findings[0].metrics, cell.findings[0].items) for cell in cells if cell.findings}


@pytest.mark.parametrize("server", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_comparison_is_evaluated_on_a_machine_that_trained_none_of_it(tmp_path, machine, server, monkeypatch):
    """Credit as at the end of the training, bit for bit, without the trained folders and without training the SFT."""
    with served(tmp_path) if server else contextlib.nullcontext(str(tmp_path / "plo.db")) as uri:
        here = machine("here")
        assert not compare(load_experiment(None, {**POCKET, "store": uri})).failed
        before = findings(uri)
        assert before.keys() == {"reference seed 0", "sft seed 0", "dpo seed 0"}
        assert before["dpo seed 0"][0]["r_A"] != before["sft seed 0"][0]["r_A"]
        tracker = Tracker(uri, create=False)
        (comparison,) = tracker.comparisons()
        for run in tracker._children(comparison.run_id, "evaluation"):
            tracker._client.delete_run(run.run_id)
        assert not findings(uri)
        shutil.rmtree(here)

        there = machine("there")
        monkeypatch.setattr(Stages, "_train", lambda *_: pytest.fail("trained again"))
        assert not evaluate_recorded(comparison, None, {"suite": ("credit",)}, tracker)
        after = findings(uri)
        assert after.keys() == before.keys()
        for name, (metrics, items) in before.items():
            assert after[name][0] == metrics
            pd.testing.assert_frame_equal(after[name][1], items, check_exact=True)
        assert not (there / "runs").exists() and len(caches.entries(["trained"])) == 2


def test_another_machine_fetches_stages_and_scores_and_makes_damaged_ones_anew(
    tiny, oracle_loss, machine, harm, monkeypatch
):
    experiment = tiny(losses=["weighted"])
    tracker = Tracker(experiment.store)
    parent = tracker.comparison("tiny", "key", {})

    def weights():
        bench = trained_bench(experiment)
        bench.stages.record = lambda key, name, params: tracker.start_stage(parent, key, name, {}, params)
        return scores.token_weights(bench.stages, get_scorer("oracle_ratio"), 0)

    def flat(made):
        return [side.tolist() for sides in made for side in sides]

    made = flat(weights())
    trained = []
    inner = Stages._train
    monkeypatch.setattr(Stages, "_train", lambda *given: trained.append(1) or inner(*given))
    machine("second")
    assert flat(weights()) == made and len(oracle_loss) == 1 and not trained

    machine("third")
    runs = {stage["name"]: stage["run_id"] for stage in tracker.stages()}
    harm(next(tracker._folder(runs["scores oracle_ratio"]).rglob("*.safetensors")))
    assert flat(weights()) == made and len(oracle_loss) == 2 and not trained  # the oracle was fetched

    machine("fourth")
    harm(next(tracker._folder(runs["oracle"]).rglob("*.safetensors")))
    assert flat(weights()) == made and len(oracle_loss) == 3 and len(trained) == 1
    assert len(tracker.stages()) == 2  # none is recorded twice


@pytest.mark.parametrize(("peft", "size", "record", "kept"), [
    ("lora", 1001, "adapters", True), ("full", 1000, "adapters", True), ("full", 1001, "adapters", False),
    ("full", 1001, "all", True), ("lora", 1, "none", False),
])  # fmt: skip
def test_which_models_the_store_gets(tmp_path, monkeypatch, peft, size, record, kept):
    monkeypatch.setattr("plo.experiment.stages.SMALL", 1000)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "part").write_bytes(b"x" * size)
    assert is_recorded(tmp_path / "model", record, ModelConfig(peft=peft)) == kept
    assert is_recorded(tmp_path / "model" / "part", record, ModelConfig(peft=peft)) == kept


def test_a_store_gets_no_models_if_the_experiment_says_so(tiny):
    small = {"eval_at": [1.0], "evaluation": {"prompts": 1, "samples": 1, "max_new_tokens": 2, "pairs": 1}}
    settings = {"losses": ["dpo"], "train.steps": 1, "stages": ["sft", "preference"], "record_models": "none"}
    assert not compare(tiny(**settings, **small)).failed
    assert not list(Path("mlartifacts").rglob("*.safetensors"))
    assert all(
        cell.model().is_dir() for cell in Tracker(create=False).cells() if cell.tags["plo.variant"] != "reference"
    )
