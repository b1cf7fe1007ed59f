"""The demo takes as much of its experiment as the machine computes in time, and says so."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from plo import demo
from plo.cli import app
from plo.cli import demo as command
from plo.config import load_experiment
from plo.demo import SIZES, measure, operations, plan

FULL = Path(__file__).parents[1] / "docs" / "demo.yaml"
AVX2 = {"float32": 33e9, "bfloat16": 0.5e9}
AMX = {"float32": 200e9, "bfloat16": 2e12}


def test_without_bfloat16_products_it_is_short_and_in_float32():
    found = plan(FULL, AVX2, minutes=5)
    assert found.minutes <= 5 and found.number > 0
    assert found.experiment.name == "demo-short" and found.experiment.model.dtype == "float32"


def test_a_fast_machine_runs_everything():
    found = plan(FULL, AMX, minutes=5)
    assert found.number == 0 and found.experiment.model.dtype == "bfloat16"
    changes = {"name": "demo", "model.dtype": "bfloat16"}
    assert found.experiment == load_experiment(FULL, changes)


def test_asked_for_everything_it_is_everything():
    assert plan(FULL, AVX2, minutes=None).number == 0


def test_nothing_fits_and_the_smallest_is_left():
    assert plan(FULL, {"float32": 1e9, "bfloat16": 1e9}, minutes=5).number == len(SIZES) - 1


def test_each_size_is_smaller_than_the_one_before():
    work = [operations(load_experiment(FULL, size)) for size in SIZES]
    assert work == sorted(work, reverse=True) and len(set(work)) == len(work)
    # Even the smallest has whole batches and something to compare.
    smallest = load_experiment(FULL, SIZES[-1])
    assert smallest.data.limit >= 4 * smallest.train.batch_size and smallest.evaluation.prompts >= 8


def test_operations_by_hand(monkeypatch):
    """One seed of dpo and sft, on a model of half a parameter: 1 operation a token forward, 2 there and back."""
    monkeypatch.setattr(demo, "PARAMETERS", 0.5)
    changes = {"losses": ["dpo"], "seeds": [0], "data.limit": 10, "train.epochs": 2}
    changes |= {
        "evaluation.prompts": 3,
        "evaluation.samples": 2,
        "evaluation.max_new_tokens": 12,
        "evaluation.pairs": 5,
    }
    training, samples, held_out = 2 * 72 * 10 * 2, 3 * 6 * (8 + 12), 72 * 5
    reference = 72 * 15 + samples
    assert operations(load_experiment(FULL, changes)) == 2 * (training + samples + held_out) + reference


def test_the_machine_is_measured_in_a_moment():
    speed = measure(seconds=0.01)
    assert speed["float32"] > 1e7 and speed["bfloat16"] > 1e6


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """The command without training: what would have run, and how to run it again on another machine."""
    ran = []
    monkeypatch.setattr(command, "run", lambda experiment: ran.append(experiment))
    monkeypatch.setattr(command, "leaderboard", lambda name: ran.append(name))

    def launch(speed, *options):
        monkeypatch.setattr(demo, "measure", lambda: speed)
        where = ["--experiment", str(FULL), "--chosen", str(tmp_path / "runs" / "demo.yaml")]
        result = CliRunner().invoke(app, ["demo", *where, *options])
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split()), ran

    return launch


def test_it_says_what_will_run_and_goes_on_with_it(launched):
    said, ran = launched(AVX2)
    assert "33 GFLOP/s in float32 and 0.5 in bfloat16" in said
    assert "trains sft, dpo with 1 seed on" in said and "plo demo --full" in said and "minutes" in said
    assert ran[0].name == ran[1] == "demo-short"
    said, ran = launched(AMX)  # nothing else ran on this computer in the meantime: it must not start anew
    assert "Continuing the demo" in said and ran[2] == ran[0]


def test_full_is_full_whatever_was_chosen(launched):
    launched(AVX2)
    said, ran = launched(AVX2, "--full")
    assert ran[2].name == "demo" and ran[2].data.limit == 192 and "--full" not in said
