"""Seeds that are added until every verdict is settled, and the baseline's further seeds."""

from pathlib import Path

import pandas as pd
import pytest

from plo import leaderboards, register_loss
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
    """Without a margin nothing is equivalent, and so short a training changes no length significantly."""
    compare(experiment(losses=["dpo", "ipo"]))
    assert seeds() in (
        {"reference": [0, 1, 2], "sft": [0, 1, 2], "dpo": [0, 1, 2], "ipo": [0, 1, 2]},
        {"reference": [0, 1], "sft": [0, 1], "dpo": [0, 1], "ipo": [0, 1]},  # futile
    )


def test_the_baseline_has_further_seeds_where_rows_share_their_variances(experiment):
    """The baseline of five rows has 2 sqrt(4) = 4 seeds at the first look, and 3 sqrt(4) = 6 at the second; of four, 2 and 3."""
    variants = [None, *map(get_variant, ("sft", "dpo", "ipo"))]
    for rows, of_dpo in ((5, ((0, 1, 2, 3), (0, 1, 2, 3, 4, 5))), (4, ((0, 1), (0, 1, 2)))):
        for look, own in zip((2, 3), of_dpo, strict=True):
            others = tuple(range(look))
            assert [seeds_at(experiment(), one, rows, look) for one in variants] == [own, others, own, others]


def test_a_failed_cell_holds_up_its_own_row_alone(experiment, caplog):
    """No sample has a thousand letters, so the rows without a failure are settled at the first look."""

    @register_loss("brittle")
    def brittle(pairs):
        if Path("plo.db").exists() and len(seeds().get("brittle", ())) > 1:  # its cell of the second seed
            raise ValueError("broken")
        return (pairs.chosen.logps.sum(-1) - pairs.rejected.logps.sum(-1)) * -0.01

    caplog.set_level("INFO", logger="plo")
    outcome = compare(experiment(losses=["dpo", "brittle"], margin=1000))
    assert [name.split()[0] for name in outcome.failed] == ["brittle"]
    assert seeds()["dpo"] == [0, 1], "the second look is not taken"
    assert "look at 2 seeds: sft equivalent, brittle undecided (settled: no further seeds)" in caplog.messages
    words = {row.variant: row.verdict for row in leaderboards.read(Tracker(create=False)).rows}
    assert words == {"reference": None, "sft": "equivalent", "dpo": None, "brittle": "undecided"}


def test_looks_that_cannot_settle_anything_are_refused(experiment):
    with pytest.raises(
        ConfigError, match="looks need as many seeds as the last of them, a primary metric and a baseline"
    ):
        experiment(baseline=None)
    with pytest.raises(ConfigError, match=r"looks: write increasing numbers of seeds, such as \[3, 5, 8\]"):
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
    """Five rows are tested, so the baseline has 3 sqrt(4) = 6 seeds; six would bring it 7."""
    variants = [get_variant(name) for name in ("sft", "dpo", "ipo", "hinge", "simpo", "true_advantage")]
    planned = seeds_in_order(experiment(), variants, 3)
    assert [seed for one, seed in planned if one is variants[1]] == [0, 1, 2, 3, 4, 5]
