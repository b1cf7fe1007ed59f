"""Losses that read scores, bend the ratio, weigh one side, reward tokens or have state are trained on the pocket task, and fall."""

import pytest
import torch

from plo.config import load_experiment
from plo.experiment.matrix import compare
from plo.tracking import Tracker

LOSSES = {  # and by which share of its first value the loss falls at least, on one batch of 32 pairs, in 30 steps
    "dpo": 0.2,
    "cpo": 0.1,
    "rpo": 0.1,
    "minor_dpo": 0.1,
    "dpo_shift": 0.2,
    "odpo": 0.2,
    "rpo_reward": 0.2,
    "mappo": 0.2,
    "chi_po": 0.2,
    "squared_po": 0.2,
    "cal_dpo": 0.001,  # its targets are 500 nats away
    "f_dpo(divergence=chi2)": 0.2,
    "adpo": 0.02,  # ln 2 for each token, of which most have little to learn
    "bco": 0.2,
    "beta_dpo": 0.2,
    "alpha_dpo": 0.2,
    "epsilon_dpo": 0.05,  # its beta is .01
    "kto": 0.1,
    "adadpo": 0.2,
    "adadpo(base=hinge)": 0.2,
    "treg(scorer=gold_advantage)": 0.2,  # the pocket model reads no English prompt
}


@pytest.mark.slow
def test_the_loss_of_the_pairs_trained_on_falls(tmp_path, monkeypatch):
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    settings = {
        "data": {"source": "pocket", "options": {"pairs": 32, "seed": 0}},
        "losses": list(LOSSES),
        "seeds": [0],
        "train": {"steps": 30, "batch_size": 32, "lr": 1e-3},
        "evaluation": {"suite": []},
    }
    assert not compare(load_experiment(None, settings)).failed
    falls = {}
    for cell in Tracker(create=False).cells():
        if cell.tags["plo.variant"] in LOSSES:
            values = list(cell.history("loss").values())
            falls[cell.tags["plo.variant"]] = 1 - values[-1] / values[0]
    print({name: round(fall, 4) for name, fall in falls.items()})
    assert falls.keys() == LOSSES.keys()
    assert {name: fall for name, fall in falls.items() if fall < LOSSES[name]} == {}
