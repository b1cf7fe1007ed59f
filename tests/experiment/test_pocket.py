"""Comparisons on the pocket task: pairs drawn anew for every seed, and the credit that its controls get."""

import json
import time

import pytest
import torch
from torch.nn.functional import logsigmoid

from plo.config import load_experiment
from plo.experiment.keys import cell_key
from plo.experiment.matrix import compare
from plo.experiment.workbench import workbench
from plo.losses import register_loss
from plo.tracking import Tracker

SECONDS = 9  # of one core, for training, sampling and evaluating one cell


@pytest.fixture
def pocket(tmp_path, monkeypatch):
    """A factory of experiments on pocket in a folder and cache of their own."""
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def make(**changes):
        return load_experiment(None, {"data": "pocket", "losses": "dpo", **changes})

    return make


def ids(pairs):
    return [(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) for pair in pairs]


def test_training_pairs_are_drawn_anew_for_every_seed_and_held_out_pairs_are_not(pocket):
    bench = workbench(pocket(**{"data.options": {"pairs": 40}}))
    one, again, two = (bench.of_seed(seed) for seed in (1, 1, 2))

    assert ids(one.data.train) == ids(again.data.train) and len(one.data.train) == 40
    assert set(ids(one.data.train)).isdisjoint(ids(two.data.train))
    assert ids(one.data.eval) == ids(two.data.eval) == ids(bench.data.eval)
    assert one.stages.pairs is one.data.train
    assert one.stages.digest() != two.stages.digest()  # token weights are of these pairs
    keys = {cell_key(bench.of_seed(seed), None, seed) for seed in (1, 2)}
    assert keys == {cell_key(bench, None, seed) for seed in (1, 2)} and len(keys) == 2


def test_a_seed_among_the_options_fixes_the_pairs(pocket):
    bench = workbench(pocket(**{"data.options": {"pairs": 20, "seed": 7}}))
    assert bench.of_seed(1) is bench


@pytest.mark.slow
def test_the_ceiling_has_high_credit_and_a_turned_sign_negative_credit(pocket):
    @register_loss("turned", needs=("ref_logps",), against=("chosen", "rejected"))
    def turned(pairs, *, beta: float = 0.5):
        return -logsigmoid(-beta * pairs.log_ratio_margin())

    torch.set_num_threads(1)
    started = time.process_time()
    ceiling = {"true_advantage": {"train": {"lr": 1e-3}}}
    assert not compare(pocket(losses=[ceiling, {"dpo": {"beta": 0.5}}, "turned"], seeds=[0])).failed
    seconds = time.process_time() - started

    cells = {cell.tags["plo.variant"]: cell for cell in Tracker(create=False).cells()}
    credit = {name: cell.findings[0].metrics for name, cell in cells.items()}
    print(json.dumps(credit, indent=1), f"{seconds / len(cells):.1f} s a cell")
    best = credit["true_advantage @ lr=0.001"]
    assert best["r_A"] >= 0.8 and best["r_A0"] >= 0.7
    assert abs(best["exclamation"]) < 0.05
    assert credit["turned"]["r_A"] < 0 and credit["turned"]["r_promiser"] < 0
    assert credit["dpo(beta=0.5)"]["r_A"] > 0.4
    assert credit["reference"]["r_A"] == 0
    assert cells["turned"].metrics["reward"] < cells["reference"].metrics["reward"]
    assert 0.4 < cells["dpo(beta=0.5)"].metrics["efficiency"] < 1
    assert seconds / len(cells) < SECONDS
