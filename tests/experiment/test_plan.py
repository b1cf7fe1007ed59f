"""The plan of a comparison: what is finished, what resumes, what is to do, without weights or training."""

import shutil

import pytest
from torch.nn.functional import logsigmoid

from plo.config import ConfigError
from plo.experiment import runner
from plo.experiment.matrix import compare
from plo.experiment.plan import plan_comparison
from plo.losses import register_loss
from plo.scorers import Stage, register_scorer


@pytest.fixture(autouse=True)
def without_weights(monkeypatch):
    """Planning loads no weights: it fails if it tries to, and a function lets what follows load them."""
    import transformers

    inner = transformers.AutoModelForCausalLM.from_pretrained

    def refuse(*arguments, **keywords):
        raise AssertionError("planning loads weights")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    return lambda: monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", inner)


def states(plan):
    return {f"{cell.variant} {cell.seed}": (cell.state, cell.done, cell.steps) for cell in plan.cells}


def test_a_new_comparison_is_planned_from_its_settings_alone(tiny, tmp_path):
    plan = plan_comparison(tiny(losses=["dpo", {"ipo": {"reduction": "mean"}}], seeds=[0, 1]))

    pairs = plan.pairs
    assert 0 < pairs < 24
    steps = -(-pairs // 4)
    assert states(plan)["reference 0"] == ("to do", 0, 0)
    assert states(plan)["dpo 1"] == states(plan)["sft 0"] == ("to do", 0, steps)
    assert len(plan.cells) == 8 and plan.steps == 6 * steps
    assert (plan.comparison, plan.training_seconds, plan.stages) == (None, None, ())
    assert plan.evaluations == ("ngram_diversity", "repetition")
    assert plan.experiment.train.lr == 1e-3 and plan.store.endswith("plo.db")
    assert not (tmp_path / "plo.db").exists() and not (tmp_path / "runs").exists(), "planning makes nothing"


def test_finished_cells_and_the_step_of_a_broken_one(tiny, without_weights, monkeypatch):
    settings = {"losses": ["dpo"], "train.checkpoint_every": 1}
    without_weights()
    inner = runner.run_cell

    def broken(cell, bench, run, root, reference, progress):
        if cell.label != "dpo":
            return inner(cell, bench, run, root, reference, progress)

        seen = []

        def after_two(units, steps=0):
            seen.append(steps)
            if sum(seen) == 3:
                raise RuntimeError("power cut")

        return inner(cell, bench, run, root, reference, after_two)

    monkeypatch.setattr(runner, "run_cell", broken)
    assert compare(tiny(**settings)).failed

    plan = plan_comparison(tiny(**settings, seeds=[0, 1]))

    steps = -(-plan.pairs // 4)
    assert plan.comparison is not None
    assert states(plan)["sft 0"] == ("finished", steps, steps)
    assert states(plan)["reference 0"] == ("finished", 0, 0)
    assert states(plan)["dpo 0"] == ("resumes", 2, steps)
    assert states(plan)["dpo 1"] == ("to do", 0, steps)
    assert plan.steps == (steps - 2) + 2 * steps
    assert plan.training_seconds > 0
    assert plan_comparison(tiny(**{"train.lr": 2e-3})).comparison is None, "another optimisation is another comparison"
    shutil.rmtree("runs")
    assert states(plan_comparison(tiny(**settings)))["dpo 0"] == ("to do", 0, steps)


def test_stages_are_planned_with_the_variants_that_need_them(tiny, without_weights):
    @register_scorer("half", stages=lambda: {"oracle": Stage(train={"steps": 3}, share=0.5)})
    def half(material):
        return material.logps("oracle")

    @register_loss("weighed", needs=("ref_logps", "weights"), scorer="half")
    def weighed(pairs, *, beta: float = 0.1):
        chosen, rejected = ((side.weights * side.log_ratios).sum(-1) for side in (pairs.chosen, pairs.rejected))
        return -logsigmoid(beta * (chosen - rejected))

    experiment = tiny(losses=["dpo", "weighed"], stages=["sft", "preference"], sft={"steps": 2})
    plan = plan_comparison(experiment)

    assert [(s.name, s.variants, s.steps, s.state) for s in plan.stages] == [
        ("sft", ("sft", "dpo", "weighed"), 2, "to do"),
        ("oracle", ("weighed",), 3, "to do"),
        ("scores half", ("weighed",), 0, "to do"),
    ]
    assert [s.pairs for s in plan.stages] == [plan.pairs, round(plan.pairs / 2), plan.pairs]
    without_weights()
    assert not compare(experiment).failed
    again = plan_comparison(experiment)
    assert [s.state for s in again.stages] == ["finished"] * 3
    assert {cell.state for cell in again.cells} == {"finished"} and again.steps == 0


def test_what_would_end_the_comparison_ends_the_plan(tiny):
    with pytest.raises(ConfigError, match="dpo"):
        plan_comparison(tiny(losses=["dpo", "dpo"]))
