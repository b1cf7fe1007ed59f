"""Tuning: equally many trials for every loss, on prompts that no table uses, with the same end after an interruption."""

import json
import math

import pytest

import plo.experiment.runner as runner
from plo.config import ConfigError, Experiment
from plo.evals import register_evaluation
from plo.experiment.keys import Inputs
from plo.experiment.matrix import compare
from plo.experiment.tuning import Result, TuningError, tune
from plo.losses import register_loss
from plo.scorers import get_variant
from plo.tracking import Tracker


@pytest.fixture(autouse=True)
def _letters():
    @register_evaluation("letters", higher_is_better=True)
    def letters(samples):
        return samples["text"].str.len().to_frame("letters")


class Data:
    """The part of the data that keys depend on: 40 training pairs, which at batch 4 are ten steps."""

    train, digest = range(40), "data"


class Trials:
    """Trials without training: `score` gives the metrics of a variant, `run` notes what it is asked for."""

    spread = 0.0  # of the metric over three prompts

    def __init__(self, score, **tuning):
        experiment = Experiment(losses=["dpo"], train={"batch_size": 4, "lr": 1e-3}, tuning=tuning, primary="letters")
        self.bench = Inputs(experiment, None, Data(), ("letters",), (), "model")
        self.score, self.found, self.asked = score, {}, []

    def run(self, bench, cells):
        for cell in cells:
            if cell.key not in self.found:
                self.asked.append(cell.label)
                metrics = {"letters": 0.0, "kl": 0.0} if cell.variant is None else self.score(cell.variant)
                mean = metrics.get("letters", 0)
                self.found[cell.key] = Result(metrics, {"letters": [mean - self.spread, mean, mean + self.spread]}, 2.0)
        return {}

    def tuned(self, *losses):
        return tune(self.bench, [get_variant(loss) for loss in losses], self.run, lambda: self.found)


def far(best, *, of=lambda variant: variant.train.get("lr", 1e-3)):
    """A score that is highest where a setting is `best`."""
    return lambda variant: {"letters": -abs(math.log(of(variant) / best)), "kl": 1.0}


def test_all_losses_get_the_same_points_and_equally_many_trials():
    """Eight points of two and a half steps, rounded to 2; three in full, and the setting as given."""
    trials = Trials(far(2e-3), trials=8, promote=3)
    dpo, ipo, sft = trials.tuned("dpo", "ipo", "sft")
    short = [name for name in trials.asked if "steps=2" in name]
    rates = {loss: sorted(n.split("lr=")[1] for n in short if n.startswith(loss)) for loss in ("dpo", "ipo", "sft")}
    assert len(short) == 24 and len(trials.asked) == 1 + 24 + 3 * 4
    assert rates["dpo"] == rates["ipo"] == rates["sft"] and len(set(rates["dpo"])) == 8
    assert dpo.record["space"] == {"train.lr": pytest.approx((2.5e-4, 4e-3)), "beta": pytest.approx((0.025, 0.4))}
    assert sft.record["space"].keys() == {"train.lr"}
    assert dpo.record["digest"] == ipo.record["digest"] == sft.record["digest"]
    assert dpo.record["seconds"] == 2.0 * 12
    best = min(dpo.record["first"], key=abs)  # the point that is nearest in the first rung is trained in full
    assert dpo.record["score"] == best == max(dpo.record["first"])
    assert abs(math.log(dpo.variant.train["lr"] / 2e-3)) == pytest.approx(-best)


def test_the_score_has_its_standard_error_over_prompts():
    """Of the three values -3, 0 and 3 around the mean: sd 3, and 3 / sqrt(3)."""
    trials = Trials(far(2e-3), trials=2, promote=1)
    trials.spread = 3.0
    (dpo,) = trials.tuned("dpo")
    assert dpo.record["score_se"] == pytest.approx(math.sqrt(3))


def test_the_setting_as_given_is_kept_where_no_trial_is_better(caplog):
    caplog.set_level("INFO", logger="plo")
    (dpo,) = Trials(far(1e-3, of=lambda v: v.train.get("lr", 1e-3)), trials=2, promote=1).tuned("dpo")
    assert dpo.variant.name == "dpo" and dpo.record["point"] == {} and dpo.record["score"] == dpo.record["default"] == 0
    assert caplog.messages == ["tuned  dpo: dpo, letters -0.000 (as given -0.000)"]


def test_what_is_set_by_hand_is_fixed():
    trials = Trials(far(2e-3), trials=2, promote=1)
    given, both = trials.tuned("dpo(beta=0.3)", "dpo(beta=0.2) @ lr=2e-3")
    assert given.record["space"].keys() == {"train.lr"} and given.variant.params["beta"] == 0.3
    assert both.record["space"] == {} and both.variant.name == "dpo(beta=0.2) @ lr=0.002"


def test_ranges_come_from_the_experiment_or_the_loss():
    @register_loss("strong", needs=("ref_logps",), search={"power": (1.0, 9.0)})
    def strong(pairs, *, beta: float = 0.1, power: float = 2.0):
        return -power * beta * pairs.log_ratio_margin()

    trials = Trials(far(2e-3), trials=2, promote=1, search={"dpo": {"beta": [0.01, 1.0]}})
    dpo, own = trials.tuned("dpo", "strong")
    assert dpo.record["space"]["beta"] == (0.01, 1.0) and own.record["space"]["power"] == (1.0, 9.0)
    assert "beta" not in own.record["space"]


def test_the_fastest_learners_are_not_promoted_beyond_their_share_of_the_largest_kl():
    """Half of the steps may have half of the 2 nats. The score rises with the learning rate; KL is that times the share."""

    def score(variant):
        times = variant.train.get("lr", 1e-3) / 1e-3
        return {"letters": times, "kl": times / 2 if "steps" in variant.train else times}

    def rates(trials, short):
        names = [name for name in trials.asked if "lr=" in name and ("steps=" in name) == short]
        return sorted(float(name.split("lr=")[1].split()[0]) for name in names)

    trials = Trials(score, trials=8, promote=2, max_kl=2.0, share=0.5)
    (dpo,) = trials.tuned("dpo")
    within = [rate for rate in rates(trials, short=True) if rate <= 2e-3]
    assert 2 < len(within) < 8
    assert rates(trials, short=False) == within[-2:] and dpo.variant.train["lr"] == within[-1]
    few = Trials(score, trials=8, promote=5, max_kl=0.6, share=0.5)
    few.tuned("dpo")
    assert sum(rate <= 0.6e-3 for rate in rates(few, short=True)) < 5, "the next ones follow"
    assert rates(few, short=False) == rates(few, short=True)[:5]


def test_no_setting_beyond_the_largest_kl_is_chosen():
    """The score rises with the learning rate, and so does KL, to 4 nats at four times the base."""

    def score(variant):
        times = variant.train.get("lr", 1e-3) / 1e-3
        return {"letters": times, "kl": times}

    (dpo,) = Trials(score, trials=8, promote=8, max_kl=2.0).tuned("dpo")
    assert 1 <= dpo.variant.train.get("lr", 1e-3) / 1e-3 <= 2
    (free,) = Trials(score, trials=8, promote=8).tuned("dpo")
    assert free.variant.train["lr"] / 1e-3 > 2


def test_a_trial_that_diverged_is_a_trial_and_one_that_failed_stops_the_tuning():
    def score(variant):
        return {} if variant.params["beta"] > 0.1 else far(2e-3)(variant)

    (dpo,) = Trials(score, trials=8, promote=3).tuned("dpo")
    assert dpo.variant.params["beta"] <= 0.1 and None in dpo.record["first"]
    failing = Trials(score, trials=8)
    with pytest.raises(TuningError, match=r"1 trials failed, so nothing was chosen: dpo seed 1000: no disk"):
        tune(failing.bench, [get_variant("dpo")], lambda *_: {"dpo seed 1000": "no disk"}, dict)


def test_what_cannot_be_tuned_is_refused():
    trials = Trials(far(2e-3))
    trials.bench = Inputs(
        trials.bench.experiment.model_copy(update={"primary": "kl"}), None, Data(), ("letters",), (), ""
    )
    with pytest.raises(ConfigError, match=r"primary=kl: tuning needs a metric of samples .* Measured: letters"):
        trials.tuned("dpo")
    with pytest.raises(ConfigError, match="1000 is the seed of the tuning"):
        Experiment.of({"losses": ["dpo"], "seeds": [0, 1000], "tuning": {}}, "The experiment")


def test_a_comparison_with_tuning_is_recorded_resumed_and_keeps_its_prompts_apart(tiny, monkeypatch):
    experiment = tiny(
        losses=["sft"], tuning={"trials": 2, "promote": 1}, primary="letters", **{"evaluation.suite": ["letters"]}
    )
    inner, ran = runner.run_cell, []

    def run(cell, *arguments, **keywords):
        if len(ran) == 2 and ran[-1] != "interrupted":
            ran.append("interrupted")
            raise KeyboardInterrupt
        ran.append(cell.name)
        return inner(cell, *arguments, **keywords)

    monkeypatch.setattr(runner, "run_cell", run)
    with pytest.raises(KeyboardInterrupt):
        compare(experiment)
    assert not compare(experiment).failed
    ran.remove("interrupted")
    assert len(ran) == len(set(ran)) == 1 + 2 + 2 + 2  # reference, first trials, trials in full, cells: nothing twice
    compare(experiment)
    assert len(ran) == 7

    tracker = Tracker(create=False)
    (comparison,) = tracker.comparisons()
    trials, cells = tracker.trials(comparison.run_id).values(), comparison.cells()
    assert len(trials) == 5 and {run.tags["plo.seed"] for run in trials} == {"1000"}
    assert sorted(cell.tags["plo.loss"] for cell in cells) == ["reference", "sft"] and not comparison.missing(cells)
    shown = {prompt for cell in cells for prompt in cell.table("samples.json")["prompt"]}
    tried = {prompt for run in trials for prompt in tracker.table(run.run_id, "samples.json")["prompt"]}
    assert tried and shown and not tried & shown
    record = json.loads(next(cell for cell in cells if cell.tags["plo.loss"] == "sft").tags["plo.tuning"])
    assert record["trials"] == 2 and len(record["first"]) == 2 and record["score"] >= record["default"]
    assert not [path for path in experiment.out.rglob("model") if "steps" in str(path)]  # trained models of trials go
