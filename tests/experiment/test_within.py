"""The largest design that fits into a time: found, and printed as settings that make it."""

import math

import pytest

from plo.cli.overrides import split
from plo.config import ConfigError, load_experiment
from plo.evals import register_evaluation
from plo.experiment import within
from plo.experiment.costs import Costs
from plo.experiment.power import Measured
from plo.experiment.recorded import find_recorded
from plo.experiment.within import Fitting, propose

COSTS = {
    "start": 10.0,
    "reference": 0.0,
    "training log-probs": 0.0,
    "evaluation": 1.0,
    "evaluation of the reference": 1.0,
}


@pytest.fixture(autouse=True)
def letters():
    @register_evaluation("letters", higher_is_better=True)
    def letters(samples):
        return samples["text"].str.len().to_frame("letters")


def proposed(experiment, seconds, workers=1):
    return propose(find_recorded(experiment), Costs.of(COSTS, "here"), seconds, workers)


def test_as_many_seeds_as_there_is_time_for(tiny):
    """An evaluation of P prompts, 2 samples each, takes 2 P seconds: a seed of reference, sft and dpo takes 6 P (no steps count)."""
    experiment = tiny(eval_at=[1.0])
    found = proposed(experiment, 10 + 6 * 3 * 5 + 1)
    (three, *more) = found.fitting
    assert (three.prompts, three.seeds, three.seconds) == (3, 5, 10 + 6 * 3 * 5)
    assert all(one.seconds <= 101 and one.seeds < 5 for one in more) and found.chosen == three
    assert found.metric is None and math.isnan(three.detectable)
    assert three.overrides(experiment) == ["seeds=0,1,2,3,4"]
    two = proposed(experiment, 10 + 6 * 3 * 5 + 1, workers=3).chosen
    assert two.seeds > 5, "workers share the work"


def test_variances_choose_between_seeds_and_prompts(tiny, monkeypatch):
    """Seeds do not vary, so more prompts detect more than more seeds do."""
    parts = {"loss x seed": 0.0, "loss x prompt": 1.0, "residual": 0.0}
    measured = Measured("letters", "tiny", 2, 2, 3, 2, parts, math.inf, 1.0, 1.0, 7, 3, 0.05)
    monkeypatch.setattr(within, "measure", lambda experiment: measured)
    experiment = tiny(eval_at=[1.0], seeds=[7, 8])
    found = proposed(experiment, 10 + 6 * 3 * 5)
    assert found.chosen.prompts == max(one.prompts for one in found.fitting) > 3
    assert found.metric == "letters"
    chosen = found.chosen
    assert chosen.detectable == measured.design(chosen.seeds, chosen.prompts, 2).detectable
    assert chosen.overrides(experiment)[-1] == f"evaluation.prompts={chosen.prompts}"


def test_looks_are_cut_or_continued_and_trials_are_halved(tiny):
    """Looks of 2, 3 seeds, then 4 and 6. Trials are halved while fewer than three seeds fit."""
    facts = {
        "primary": "letters",
        "baseline": "sft",
        "baseline_seeds": 1,
        "evaluation.suite": ["letters"],
        "eval_at": [1.0],
    }
    experiment = tiny(seeds={"looks": [2, 3]}, tuning={"trials": 8, "promote": 3}, **facts)
    trials = lambda count: 6 + 2 * (count + min(count, 3) + 1) * 6  # noqa: E731 (the reference, and both losses)
    plenty = proposed(experiment, 10 + trials(8) + 6 * 3 * 6)
    assert next(one for one in plenty.fitting if one.prompts == 3).looks == (2, 3, 4, 6)
    assert plenty.chosen.trials == 8
    little = proposed(experiment, 10 + trials(4) + 6 * 3 * 2)  # two seeds with four trials, or four with two
    assert (little.chosen.trials, little.chosen.looks) == (2, (2, 3, 4))
    assert little.chosen.overrides(experiment) == ["seeds={looks: [2, 3, 4]}", "tuning.trials=2", "tuning.promote=2"]


def test_what_is_printed_makes_the_design(tiny):
    plain, looked = Fitting(4, (), 5, 2, 0.0, 0.0), Fitting(4, (2, 3, 4), 5, 2, 0.0, 0.0)
    given = tiny(seeds=[0, 3], tuning={"trials": 8, "promote": 3})
    facts = {"losses": ["dpo"], "primary": "reward", "baseline": "dpo", "tuning": {"trials": 8, "promote": 3}}
    for one, seeds in ((plain, (0, 3, 4, 5)), (looked, (0, 1, 2, 3))):
        _, settings = split(one.overrides(given))
        made = load_experiment(None, facts | settings)
        assert made.seeds == seeds and made.looks == one.looks and made.evaluation.prompts == 5
        assert made.tuning is not None and (made.tuning.trials, made.tuning.promote) == (2, 2)


def test_what_does_not_fit_is_refused_with_the_time_that_the_smallest_takes(tiny):
    with pytest.raises(ConfigError, match="Nothing fits into 0 minutes: the smallest design tried takes about 1"):
        proposed(tiny(eval_at=[1.0]), 20.0)
    with pytest.raises(ConfigError, match="--within needs costs"):
        propose(find_recorded(tiny()), Costs(), 3600.0)
