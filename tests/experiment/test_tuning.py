"""Tuning: equally many trials for every loss, on prompts that no table uses, with the same end after an interruption."""

import json

import pytest

import plo.experiment.matrix as matrix
from plo.config import ConfigError
from plo.evals import register_evaluation
from plo.experiment.matrix import compare
from plo.losses import register_loss
from plo.tracking import Tracker

TUNING = {"trials": 3, "promote": 1, "share": 0.5}


@pytest.fixture
def experiment(tiny):
    """Experiments with a metric of samples, the number of their letters, and a tuning of five trials a loss."""

    @register_evaluation("letters", higher_is_better=True)
    def letters(samples):
        return samples["text"].str.len().to_frame("letters")

    def make(**changes):
        settings = {"losses": ["dpo"], "tuning": TUNING, "primary": "letters", "evaluation.suite": ["letters"]}
        return tiny(**settings | changes)

    return make


def recorded():
    tracker = Tracker(create=False)
    (comparison,) = tracker.comparisons()
    return tracker, tracker.trials(comparison.run_id), {cell.name: cell for cell in comparison.cells()}


def tunings():
    """The records of the tuning of each loss."""
    return {
        cell.tags["plo.loss"]: json.loads(cell.tags["plo.tuning"])
        for cell in recorded()[2].values()
        if "plo.tuning" in cell.tags
    }


def test_every_loss_gets_equally_many_trials_on_prompts_of_its_own(experiment):
    """Five steps in full: 3 trials of 2 steps, then the best of them and the given setting; sft has its learning rate alone."""
    assert not compare(experiment()).failed
    tracker, trials, cells = recorded()
    steps = {}
    for run in trials.values():
        steps.setdefault(run.tags["plo.loss"], []).append(run.params.get("train.steps"))
    assert {loss: sorted(map(str, given)) for loss, given in steps.items()} == {
        "reference": ["None"],
        **{loss: ["2", "2", "2", "None", "None"] for loss in ("sft", "dpo")},
    }
    shown = {prompt for cell in cells.values() for prompt in cell.table("samples.json")["prompt"]}
    tried = {prompt for run in trials.values() for prompt in tracker.table(run.run_id, "samples.json")["prompt"]}
    assert tried and shown and not tried & shown
    assert {run.tags["plo.seed"] for run in trials.values()} == {"1000"}
    assert len(cells) == 3 and not any("steps" in name for name in cells)  # trials are no cells
    found = tunings()
    assert found.keys() == {"sft", "dpo"} and len({one["digest"] for one in found.values()}) == 1
    assert found["sft"]["space"].keys() == {"train.lr"}
    assert found["dpo"]["space"] == {"train.lr": pytest.approx([2.5e-4, 4e-3]), "beta": pytest.approx([0.025, 0.4])}
    assert found["dpo"]["score"] >= found["dpo"]["default"] and len(found["dpo"]["first"]) == 3


def test_the_best_trial_is_compared(experiment, monkeypatch):
    """The metric is made to say which learning rate is best, in the first rung and in the second."""

    def scored(cell, *arguments, **keywords):
        metrics = inner(cell, *arguments, **keywords)
        if cell.variant is not None:
            run = arguments[1]
            run._tracker._client.log_metric(run.run_id, "letters", -abs(cell.variant.train.get("lr", 1) - 2e-3))
        return metrics

    inner = matrix.run_cell
    monkeypatch.setattr(matrix, "run_cell", scored)
    compare(experiment())
    rates = {float(run.params["lr"]) for run in recorded()[1].values() if run.params.get("train.steps") == "2"}
    best = min(rates, key=lambda rate: abs(rate - 2e-3))
    assert all(one["point"]["train.lr"] == best for one in tunings().values())
    assert float(recorded()[2][f"sft @ lr={best:g} seed 0"].params["lr"]) == best


def test_an_interrupted_tuning_ends_with_the_same_settings(experiment, monkeypatch):
    inner, ran = matrix.run_cell, []

    def interrupted(cell, *arguments, **keywords):
        if len(ran) == 4:
            raise KeyboardInterrupt
        ran.append(cell.name)
        return inner(cell, *arguments, **keywords)

    monkeypatch.setattr(matrix, "run_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(experiment())
    monkeypatch.setattr(matrix, "run_cell", lambda cell, *a, **k: ran.append(cell.name) or inner(cell, *a, **k))
    compare(experiment())
    assert len(ran) == len(set(ran)) == 11 + 3  # nothing twice
    interrupted_end = tunings()
    compare(experiment())
    assert len(ran) == 14
    compare(experiment(name="undisturbed"))
    cells = Tracker(create=False).cells("undisturbed")
    again = {cell.tags["plo.loss"]: json.loads(cell.tags["plo.tuning"]) for cell in cells if "plo.tuning" in cell.tags}
    assert {k: (v["point"], v["score"]) for k, v in again.items()} == {
        k: (v["point"], v["score"]) for k, v in interrupted_end.items()
    }


def test_a_trial_that_diverges_is_a_trial(experiment):
    @register_loss("steep", needs=("ref_logps",))
    def steep(pairs, *, beta: float = 0.1):
        margin = pairs.log_ratio_margin()
        return margin * (float("nan") if beta > 0.1 else -beta)

    assert not compare(experiment(losses=["steep"])).failed
    diverged = [run for run in recorded()[1].values() if "plo.diverged" in run.tags]
    assert diverged and all(float(run.params["beta"]) > 0.1 for run in diverged)
    assert tunings()["steep"]["point"].get("beta", 0.1) <= 0.1


def test_what_cannot_be_tuned_is_refused_first(experiment):
    with pytest.raises(ConfigError, match=r"primary=tokens: tuning needs a metric of samples .*letters"):
        compare(experiment(primary="tokens"))
    with pytest.raises(ConfigError, match="1000 is the seed of the tuning"):
        experiment(seeds=[0, 1000])
