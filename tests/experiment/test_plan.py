"""The plan of a comparison: what is finished, what resumes, what is to do, without weights or training."""

import shutil
from contextlib import nullcontext

import pytest
from torch.nn.functional import logsigmoid

from plo.config import ConfigError, Experiment
from plo.evals import register_evaluation
from plo.experiment import runner
from plo.experiment.keys import Inputs
from plo.experiment.matrix import compare
from plo.experiment.plan import plan_comparison
from plo.experiment.tuning import Result, TuningError, tune
from plo.experiment.tuning_plan import plan_tuning
from plo.losses import register_loss
from plo.scorers import Stage, get_variant, register_scorer
from plo.tracking import Tracker


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
    assert len(plan.cells) == 8 and plan.steps(plan.left) == 6 * steps
    assert plan.comparison is None and plan.model_evaluations == ()
    (passed,) = plan.stages
    held_out = 24 - pairs
    assert (passed.unit, passed.pairs, passed.state) == ("reference pass", pairs + held_out, "to do")
    assert plan.cells[1].needs == ("reference pass", "reference seed 0")
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
    assert plan.steps(plan.left) == (steps - 2) + 2 * steps
    assert [stage.state for stage in plan.stages] == ["finished"], "the reference's statistics are in the cache"
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

    everyone = ("reference", "sft", "dpo", "weighed")
    assert [(s.name, s.variants, s.steps, s.state) for s in plan.stages] == [
        ("sft", everyone, 2, "to do"),
        ("reference pass", everyone, 0, "to do"),
        ("oracle", ("weighed",), 3, "to do"),
        ("scores half", ("weighed",), 0, "to do"),
    ]
    assert [s.pairs for s in plan.stages] == [plan.pairs, 24, round(plan.pairs / 2), plan.pairs]
    before = ("sft of seed 0", "reference pass of seed 0")
    assert [s.needs for s in plan.stages] == [(), before[:1], before, (*before, "oracle of seed 0")]
    assert plan.cells[-1].needs == (*before, "scores half of seed 0", "reference seed 0")
    without_weights()
    assert not compare(experiment).failed
    again = plan_comparison(experiment)
    assert [s.state for s in again.stages] == ["finished"] * 4
    assert {cell.state for cell in again.cells} == {"finished"} and again.steps(again.left) == 0


def test_what_only_some_losses_read_of_the_reference_is_a_pass_of_its_own(tiny, without_weights):
    """KTO reads two completions a pair, TDPO hidden states; a finished `dpo` has neither."""
    without_weights()
    assert not compare(tiny(**{"train.steps": 1})).failed
    plan = plan_comparison(tiny(losses=["dpo", "kto", "tdpo2"], seeds=[0, 1], **{"train.steps": 1}))
    passes = [(s.unit, s.variants, s.pairs, s.state) for s in plan.stages]
    assert passes == [
        ("reference pass", ("reference", "sft", "dpo", "kto", "tdpo2"), 24, "finished"),
        ("completions", ("kto",), plan.pairs, "to do"),
        ("hidden states", ("tdpo2",), plan.pairs, "to do"),
    ]
    needs = {cell.name: cell.needs for cell in plan.cells}
    assert needs["kto seed 1"] == ("reference pass", "completions", "reference seed 1")
    assert not compare(tiny(losses=["kto"], **{"train.steps": 1})).failed
    again = plan_comparison(tiny(losses=["dpo", "kto", "tdpo2"], seeds=[0, 1], **{"train.steps": 1}))
    assert [s.state for s in again.stages] == ["finished", "finished", "to do"]


def test_what_would_end_the_comparison_ends_the_plan(tiny):
    with pytest.raises(ConfigError, match="dpo"):
        plan_comparison(tiny(losses=["dpo", "dpo"]))


@pytest.fixture
def letters():
    @register_evaluation("letters", higher_is_better=True)
    def letters(samples):
        return samples["text"].str.len().to_frame("letters")

    return {"primary": "letters", "evaluation.suite": ["letters"]}


def test_looks_are_planned_with_the_baselines_further_seeds(tiny, letters):
    """The baseline has 3 seeds from the first look on, as the experiment sets it, and so has the reference."""
    looks = {"seeds": {"looks": [2, 3]}, "baseline": "dpo", "baseline_seeds": 3}
    plan = plan_comparison(tiny(losses=["dpo", "ipo"], **looks, **letters))
    looks = {}
    for cell in plan.cells:
        looks.setdefault(cell.variant, {})[cell.seed] = cell.look
    assert looks["sft"] == looks["ipo"] == {0: 2, 1: 2, 2: 3}
    assert looks["dpo"] == looks["reference"] == {0: 2, 1: 2, 2: 2}
    assert (len(plan.least), len(plan.left)) == (10, 12)
    steps = -(-plan.pairs // 4)
    assert (plan.steps(plan.least), plan.steps(plan.left)) == (7 * steps, 9 * steps)


def test_a_variants_own_steps_are_planned(tiny):
    plan = plan_comparison(tiny(losses=["dpo @ steps=3", "ipo @ epochs=2"]))
    assert states(plan)["dpo @ steps=3 0"] == ("to do", 0, 3)
    assert states(plan)["ipo @ epochs=2 0"] == ("to do", 0, 2 * -(-plan.pairs // 4))


def test_a_tuning_alone_is_planned_and_a_comparison_reuses_it(tiny, letters, without_weights):
    """The reference, two first trials of a quarter of the steps, one of them in full, and the setting as given."""
    experiment = tiny(losses=["sft"], tuning={"trials": 2, "promote": 1}, **letters)
    new = plan_comparison(experiment)
    steps = -(-new.pairs // 4)
    assert (new.tuning.trials, new.tuning.finished) == (5, 0)
    assert new.tuning.steps == 2 * max(1, round(steps / 4)) + 2 * steps
    assert [trial.rung for trial in new.tuning.left] == [0, 1, 1, 2, 2]
    without_weights()
    (sft,) = compare(experiment, only_tuning=True).tuned

    (comparison,) = Tracker(create=False).comparisons()
    assert comparison.cells() == []
    trials = Tracker(create=False).trials(comparison.run_id).keys()
    plan = plan_comparison(experiment)
    assert (plan.tuning.trials, plan.tuning.finished, plan.tuning.steps) == (5, 5, 0)
    assert states(plan).keys() == {"reference 0", f"{sft.variant.name} 0"} and len(plan.left) == 2
    assert compare(experiment).tuned[0].variant.name == sft.variant.name
    assert Tracker(create=False).trials(comparison.run_id).keys() == trials
    assert plan_comparison(experiment).left == []
    with pytest.raises(ConfigError, match=r"tuning: the experiment has none"):
        compare(tiny(), only_tuning=True)


class Data:
    """The part of the data that keys depend on: 40 training pairs, which at batch 4 are ten steps."""

    train, digest = range(40), "data"


@pytest.mark.usefixtures("letters")
@pytest.mark.parametrize(("recorded", "steps"), [(0, 48), (1, 48), (2, 46), (5, 40), (6, 30), (9, 0)])
def test_what_is_left_of_a_tuning_is_found_from_recorded_trials(recorded, steps):
    """Two losses: the reference, two trials of two steps each, then one in full and the setting as given, ten steps each."""
    tuning = {"trials": 2, "promote": 1, "share": 0.2}
    settings = {"losses": ["dpo"], "train": {"batch_size": 4, "lr": 1e-3}, "primary": "letters", "tuning": tuning}
    inputs = Inputs(Experiment(**settings), None, Data(), ("letters",), (), "model")
    variants, results = [get_variant("dpo"), get_variant("ipo")], {}

    def run(_, cells):
        for cell in cells:
            if cell.key not in results and len(results) < recorded:
                results[cell.key] = Result({"letters": 1.0, "kl": 1.0}, {"letters": [1.0]}, 2.0)
        return {} if all(cell.key in results for cell in cells) else {"a trial": "was interrupted"}

    with pytest.raises(TuningError) if recorded < 9 else nullcontext():
        tune(inputs, variants, run, lambda: results)
    planned, chosen = plan_tuning(inputs, variants, results)
    assert (planned.trials, planned.finished, planned.steps) == (9, recorded, steps)
    assert [trial.rung for trial in planned.left] == [0, 1, 1, 1, 1, 2, 2, 2, 2][recorded:]
    assert len(chosen) == 2
