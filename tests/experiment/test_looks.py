"""Seeds that are added until every verdict is settled, and the baseline's further seeds."""

import pandas as pd
import pytest

from plo.config import ConfigError, Experiment
from plo.evals import Findings, register_evaluation
from plo.experiment.looks import seeds_at, seeds_in_order
from plo.experiment.matrix import compare
from plo.experiment.plan import plan_comparison
from plo.scorers import get_variant
from plo.tracking import Tracker


@pytest.fixture
def experiment(tiny):
    @register_evaluation("letters", higher_is_better=True)
    def letters(samples):
        return samples["text"].str.len().to_frame("letters")

    def make(**changes):
        looks = {"losses": ["dpo"], "seeds": {"looks": [2, 3]}, "primary": "letters", "baseline": "dpo"}
        return tiny(**looks | {"evaluation.suite": ["letters"]} | changes)

    return make


def seeds():
    found = {}
    for cell in Tracker(create=False).cells():
        found.setdefault(cell.tags["plo.variant"], []).append(int(cell.tags["plo.seed"]))
    return {name: sorted(own) for name, own in found.items()}


def test_no_seed_is_added_once_every_verdict_is_settled(experiment, caplog):
    """No sample has a thousand letters, so all rows are equivalent at the first look of two seeds."""
    caplog.set_level("INFO", logger="plo")
    settled = experiment(margin=1000, baseline_seeds=2)
    compare(settled)
    plan = plan_comparison(settled)
    assert (plan.stop, plan.left) == ("settled", []), "a later look is not planned"
    assert seeds() == {"reference": [0, 1], "sft": [0, 1], "dpo": [0, 1]}
    assert "look at 2 seeds: sft equivalent (settled: no further seeds)" in caplog.messages


def test_seeds_are_added_while_a_verdict_is_open(experiment):
    """Without a margin nothing is equivalent, and so short a training changes no length significantly.

    The baseline of three rows has round(2 sqrt(2)) = 3 seeds at the first look, and round(3 sqrt(2)) = 4 at the second.
    """
    three = experiment(losses=["dpo", "ipo"])
    variants = [None, get_variant("sft"), get_variant("dpo"), get_variant("ipo")]
    assert [seeds_at(three, one, 3, 2) for one in variants] == [(0, 1, 2), (0, 1), (0, 1, 2), (0, 1)]
    assert [seeds_at(three, one, 3, 3) for one in variants] == [(0, 1, 2, 3), (0, 1, 2), (0, 1, 2, 3), (0, 1, 2)]
    compare(three)
    assert seeds() in (
        {"reference": [0, 1, 2, 3], "sft": [0, 1, 2], "dpo": [0, 1, 2, 3], "ipo": [0, 1, 2]},
        {"reference": [0, 1, 2], "sft": [0, 1], "dpo": [0, 1, 2], "ipo": [0, 1]},  # futile
    )


def test_looks_that_cannot_settle_anything_are_refused(experiment):
    with pytest.raises(
        ConfigError, match="looks need as many seeds as the last of them, a primary metric and a baseline"
    ):
        experiment(baseline=None)
    with pytest.raises(ConfigError, match="looks are increasing numbers of seeds"):
        experiment(seeds={"looks": [3, 2]})
    with pytest.raises(
        ConfigError, match=r"baseline=ipo is the name of no loss in this comparison: name one of sft, dpo"
    ):
        compare(experiment(baseline="ipo"))
    tuned = {"losses": ["dpo(beta=0.3)", "ipo"], "baseline": "dpo(beta=0.3)", "tuning": {}}
    with pytest.raises(
        ConfigError, match=r"baseline=dpo\(beta=0.3\) is the name of no loss .*: name one of sft, dpo, ipo"
    ):
        compare(experiment(**tuned))
    assert Experiment(losses=["dpo"], seeds={"looks": [3]}, primary="reward", baseline="dpo").seeds == (0, 1, 2)


def test_a_look_sees_what_has_just_been_evaluated(experiment, caplog):
    """The primary metric may be one of a trained model, which is evaluated after its cell is recorded."""

    @register_evaluation("marks", level="model", higher_is_better=True)
    def marks(subject):
        return Findings({"marks": 2.0}, pd.DataFrame({"prompt_id": [0, 1, 2], "marks": [1.0, 2.0, 3.0]}))

    caplog.set_level("INFO", logger="plo")
    compare(experiment(losses=["sft"], baseline="sft", primary="marks.marks", **{"evaluation.suite": ["marks"]}))
    assert [text for text in caplog.messages if text.startswith("look at")]


def test_ceilings_bring_the_baseline_no_seeds(experiment):
    """Two rows are tested, sft and dpo: the baseline has 2 sqrt(1) seeds."""
    variants = [get_variant(name) for name in ("sft", "dpo", "true_advantage")]
    planned = seeds_in_order(experiment(), variants, 2)
    assert [seed for one, seed in planned if one is variants[1]] == [0, 1]
