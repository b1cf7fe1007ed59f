"""Power of an experiment: which recorded cells count, what they cost, and the pilot that is run without any."""

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import pandas as pd
import pytest

import plo.experiment.power as power
from plo.config import ConfigError, Experiment
from plo.experiment.power import designs, measure, pilot
from plo.experiment.recorded import Recorded
from plo.metric import BUILT_IN
from plo.scorers import get_variant


@dataclass
class Cell:
    """A recorded cell with two samples of each of 4 prompts; the second sample has 2 more reward."""

    variant: str
    seed: int
    rewards: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)
    status: str = "FINISHED"
    seconds: float = 20.0
    extra: dict = field(default_factory=dict)
    comparison: str = "mine"
    findings: tuple = ()

    @property
    def tags(self):
        return {"plo.variant": self.variant, "plo.seed": str(self.seed), "plo.seconds": str(self.seconds)} | self.extra

    name = property(lambda self: f"{self.variant} seed {self.seed}")
    metrics = property(lambda self: {"reward": 0.0})
    described = property(lambda self: {"tokens": BUILT_IN["tokens"], "reward": BUILT_IN["reward"]})

    def has_table(self, name):
        return name == "samples.json"

    def table(self, name):
        rows = [(prompt, value + 2 * k) for prompt, value in enumerate(self.rewards) for k in range(2)]
        return pd.DataFrame(rows, columns=["prompt_id", "reward"])


@pytest.fixture
def recorded(monkeypatch):
    def use(*cells, held_out=9):
        pairs = [SimpleNamespace(prompt=f"prompt {i}") for i in range(held_out)] * 2
        inputs = SimpleNamespace(data=SimpleNamespace(eval=pairs))
        comparison = SimpleNamespace(cells=lambda: list(cells))
        monkeypatch.setattr(power, "find_recorded", lambda one: Recorded(inputs, None, [], None, comparison))

    return use


EXPERIMENT = Experiment(losses=["dpo", "ipo"], eval_at=(0.5,), evaluation={"prompts": 4, "samples": 2})


def four(**changes):
    """Two variants with two seeds whose rewards differ by a fixed amount, and the reference with both seeds."""
    cells = [
        Cell(name, seed, (1.0 + seed, 2.0 + seed, 3.0 + seed, 4.0 + seed), **changes)
        for name in ("dpo", "ipo")
        for seed in (0, 1)
    ]
    return [*cells, *(Cell("reference", seed, seconds=4.0) for seed in (0, 1))]


def test_variances_and_seconds_come_from_the_finished_cells(recorded):
    """Only prompts, seeds and samples differ: two samples 2 apart have the variance 2, and nothing depends on the loss.

    A reference takes 4 seconds for 8 samples, and a cell evaluates twice: 20 - 2 x 4 seconds are left for the training.
    """
    recorded(
        *four(),
        Cell("dpo", 2),  # ipo has no third seed
        Cell("dpo", 3, status="FAILED", rewards=(90.0, 0.0, 0.0, 0.0)),
        Cell("sft", 0),  # one seed alone
        Cell("gold", 0, extra={"plo.ceiling": "true"}),
        Cell("gold", 1, extra={"plo.ceiling": "true"}),
        *(
            Cell("best_of_n(n=4)", s, seconds=900.0, extra={"plo.ceiling": "true", "plo.loss": "best_of_n"})
            for s in (0, 1)
        ),
    )
    found = measure(EXPERIMENT)
    assert (found.metric, found.comparison, found.variants, found.seeds) == ("reward", "mine", 2, 2)
    assert (found.prompts, found.samples, found.held_out, found.rows, found.alpha) == (4, 2, 9, 4, 0.05)
    parts = ("sample", "loss x seed", "loss x prompt", "residual", "seed", "prompt")
    assert [found.components[name] for name in parts] == pytest.approx([2, 0, 0, 0, 0.5, 5 / 3])
    assert math.isinf(found.d0)
    assert (found.cell_seconds, found.sample_seconds) == (12.0, 1.0)
    assert found.design(3, 4, 2).cost == 4 * 3 * (12 + 4 * 2 * 1.0)


def test_a_design_is_tested_at_the_level_of_the_last_look(recorded):
    recorded(*four())
    looks = {"seeds": {"looks": [3, 5, 8]}, "primary": "reward", "baseline": "dpo"}
    found = measure(Experiment(losses=["dpo", "ipo"], **looks))
    assert (found.alpha, found.rows) == (pytest.approx(0.025), 3)  # sft, dpo and ipo, without the reference


def test_designs_are_those_of_the_experiment_and_larger_ones_within_the_held_out_prompts(recorded):
    recorded(*four())
    sizes = {(one.seeds, one.prompts, one.samples) for one in designs(EXPERIMENT, measure(EXPERIMENT))}
    assert sizes == {(s, p, k) for s in (2, 3, 5, 8) for p in (4, 9) for k in (2, 8)}


def test_too_few_cells_show_nothing_and_unknown_seconds_have_no_cheapest_design(recorded):
    recorded(*four()[:3])
    assert measure(EXPERIMENT) is None
    recorded(*four()[:4])  # without a reference
    assert math.isnan(measure(EXPERIMENT).cell_seconds)
    with pytest.raises(ConfigError, match="recorded without their seconds, so designs have no cost"):
        measure(EXPERIMENT).cheapest(0.1)
    with pytest.raises(
        ConfigError, match=r"primary=wit: dpo seed 0 of the recorded comparison mine has no values of it"
    ):
        measure(EXPERIMENT.model_copy(update={"primary": "wit"}))


def test_a_pilot_is_the_baseline_and_sft_on_two_seeds():
    experiment = Experiment.of(
        {
            "losses": ["dpo", {"ipo": {"beta": 0.2}}, "sft"],
            "seeds": {"looks": [3, 5]},
            "primary": "reward",
            "baseline": "ipo",
            "evaluation": {"suite": ["repetition", {"hh": {"prompts": 9}}], "judge": "gold:sentiment"},
        },
        "It",
    )
    small = pilot(experiment)
    assert (small.name, small.seeds, small.looks, small.baseline) == ("comparison", (0, 1), (), None)
    assert [get_variant(one).name for one in small.losses] == ["ipo(beta=0.2)"]
    assert small.evaluation.suite == ("repetition",), "a judge of models is asked nothing that the primary metric lacks"
    assert (
        pilot(experiment.model_copy(update={"primary": "hh.win_rate"})).evaluation.suite == experiment.evaluation.suite
    )
    tuned = pilot(Experiment(losses=["dpo"], seeds=[7], tuning={}))
    assert (tuned.name, tuned.seeds, tuned.tuning, tuned.losses) == ("comparison-pilot", (7, 8), None, ("dpo",))
