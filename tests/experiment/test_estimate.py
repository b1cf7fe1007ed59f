"""Estimates: makespans by hand, costs of units by hand, and what recorded cells show."""

import json
import math

import pytest

from plo.config import Experiment
from plo.experiment.costs import Costs, cost_class
from plo.experiment.estimate import Estimate
from plo.experiment.estimates import estimate
from plo.experiment.makespan import Unit, makespan
from plo.experiment.matrix import compare
from plo.experiment.plan import Plan, PlannedCell, Shape
from plo.experiment.plan_evaluations import PlannedEvaluation, plan_evaluations
from plo.experiment.plan_stages import PlannedStage
from plo.experiment.recorded import find_recorded
from plo.experiment.recorded_costs import recorded_costs
from plo.experiment.tuning_plan import PlannedTrial, PlannedTuning
from plo.losses import get_loss
from plo.scorers import get_variant
from plo.tracking import Tracker

COSTS = {
    "start": 5.0, "reference": 0.1, "draw": 2.0, "training log-probs": 1.0, "training entropy": 2.0, "scoring s": 0.5,
    "cell": 3.0, "stage": 4.0, "checkpoint": 0.25, "evaluation": 0.2, "evaluation of the reference": 0.1,
    "memory": 1.0, "memory log-probs": 2.0, "memory entropy": 3.0, "memory scoring s": 2.5,
    "bytes of a model": 100.0, "bytes of a checkpoint": 1000.0, "bytes of a cell": 10.0, "bytes of a stage": 50.0,
    "bytes of reference": 4.0, "bytes of hidden states": 64.0,
}  # fmt: skip


def planned(**changes):
    """Ten pairs of 8 tokens, 6 of them in responses; 20 samples an evaluation, at half and at the end of a training."""
    facts = {
        "experiment": Experiment(losses=("dpo",), eval_at=(0.5,), train={"checkpoint_every": 10}),
        "data": "",
        "pairs": 10,
        "store": "",
        "comparison": None,
        "cells": (),
        "stages": (),
        "evaluations": (),
        "model_evaluations": (),
        "shape": Shape(8.0, 6.0, 20),
    }
    return Plan(**facts | changes)


def units(plan, workers=1, **changes):
    found = Estimate(plan, Costs.of(COSTS | changes, "here"), workers)
    return found, {unit.name: unit for unit in found.units(plan.left)}


@pytest.mark.parametrize(
    ("workers", "seconds"),
    [
        (1, 1 + 3 + 2 + 4 + 1),
        (2, 1 + 3 + 4 + 1),  # b is done meanwhile
        (9, 1 + 3 + 4 + 1),
    ],
)
def test_the_makespan_of_a_graph(workers, seconds):
    """a and b are free, c waits for a, e for c and for a unit that is done already."""
    graph = [Unit("a", 3), Unit("b", 2), Unit("c", 4, ("a",)), Unit("e", 1, ("c", "elsewhere"))]
    assert makespan(graph, workers, 1) == seconds


def test_a_unit_waits_for_a_free_worker_and_the_first_in_the_list_goes_first():
    graph = [Unit("long", 5), Unit("short", 1), Unit("last", 4)]
    assert makespan(graph, 2) == 5, "last follows short"
    assert makespan(reversed(graph), 2) == 1 + 5, "last and short go first, and long follows short"
    assert makespan([Unit("a", 10), Unit("b", 1), Unit("c", 10), Unit("d", 10)], 2) == 20, "a and c run when b is done"
    assert makespan([], 3, 7) == 0
    with pytest.raises(AssertionError, match="wait for each other: a, b"):
        makespan([Unit("a", 1, ("b",)), Unit("b", 1, ("a",))])


def test_seconds_memory_and_disk_of_stages_and_cells_by_hand():
    stages = (
        PlannedStage("reference pass", ("dpo",), 0, 10, "to do", unit="r"),
        PlannedStage("oracle", ("dpo",), 3, 5, "to do", 0, "log-probs", 4, "o", ("r",)),
        PlannedStage("scores s", ("dpo",), 0, 10, "to do", 0, "s", 0, "s", ("o",)),
        PlannedStage("oracle", ("dpo",), 3, 5, "finished", 1, "log-probs", 4, "o2"),
        PlannedStage("oracle", ("none",), 3, 5, "to do", 2, "log-probs", 4, "o3"),
    )
    cells = (
        PlannedCell("reference", 0, "to do", 0, 0, needs=("r",)),
        PlannedCell("dpo", 0, "to do", 40, 0, 0, "log-probs", 4, ("s", "reference seed 0")),
        PlannedCell("x", 0, "resumes", 40, 25, 0, "entropy", 16, ("r", "o2", "reference seed 0")),
        PlannedCell("y", 0, "finished", 40, 40, 0, "entropy", 16),
    )
    plan = planned(stages=stages, cells=cells)
    found, all_units = units(plan)
    seconds = {name: unit.seconds for name, unit in all_units.items()}
    assert seconds == {
        "r": pytest.approx(10 * 8 * 0.1),
        "o": 3 * 4 * 8 * 1.0 + 4,
        "s": 10 * 8 * 0.5,
        "reference seed 0": 20 * 0.1,
        "dpo seed 0": 40 * 4 * 8 * 1.0 + 3 + 2 * 20 * 0.2 + 2 * 0.25,  # four checkpoints, two of them at evaluations
        "x seed 0": 15 * 10 * 8 * 2.0 + 3 + 1 * 20 * 0.2,  # a batch has ten pairs at most
    }
    assert list(all_units) == ["r", "reference seed 0", "o", "s", "dpo seed 0", "x seed 0"], (
        "stages right before their cells"
    )
    assert [all_units[name].memory for name in ("r", "o", "s", "dpo seed 0", "x seed 0")] == [1.0, 2.0, 2.5, 2.0, 3.0]
    disk = {"r": 10 * 6 * 4, "o": 50, "s": 10 * 6 * 4, "reference seed 0": 10, "dpo seed 0": 110, "x seed 0": 110}
    assert {name: unit.disk for name, unit in all_units.items()} == disk
    total = found.total(list(all_units.values()))
    assert total.wall == total.device == pytest.approx(5 + sum(seconds.values()))
    assert (total.memory, total.disk) == (3.0, sum(disk.values()) + 2 * 1000)
    two, others = units(plan, 2)
    chain = seconds["r"] + seconds["reference seed 0"] + seconds["x seed 0"]  # the other worker does the rest meanwhile
    assert two.total(list(others.values())).wall == pytest.approx(5 + chain)


def test_trials_of_a_rung_wait_for_the_rung_before_and_cells_for_all():
    trials = (PlannedTrial(None, 0, 0), *(PlannedTrial(None, rung, 5, "log-probs", 2) for rung in (1, 1, 2)))
    cell = PlannedCell("dpo", 0, "to do", 10, 0, 0, "log-probs", 2)
    plan = planned(tuning=PlannedTuning(4, trials), trials_need=((),) * 4, cells=(cell,))
    found, all_units = units(plan, 2)
    assert all_units["trial 4"].needs == ("trial 1", "trial 2", "trial 3")
    assert all_units["dpo seed 0"].needs == ("trial 1", "trial 2", "trial 3", "trial 4")
    trial, own = 5 * 2 * 8 + 3 + 20 * 0.2, 10 * 2 * 8 + 3 + 2 * 20 * 0.2
    assert found.total(list(all_units.values())).wall == pytest.approx(5 + 2 + trial + trial + own)


def test_evaluations_of_finished_cells_are_left_too_and_a_further_look_waits_for_them():
    """Two evaluations, one of them recorded for the first cell; 4 texts of 64 tokens take as long as as many samples."""
    cells = [
        PlannedCell("dpo", seed, "to do" if seed else "finished", 10, 0, 2 + seed, "log-probs", 2) for seed in (0, 1)
    ]
    both = (PlannedEvaluation("known", 4, 64, 8, 0.5), PlannedEvaluation("lm_eval", None, 0, 0, 0.0))
    plan = planned(cells=tuple(cells), model_evaluations=both, evaluated=frozenset({("dpo seed 0", "known")}))
    found, all_units = units(plan)
    assert list(all_units) == ["dpo seed 1", "lm_eval of dpo seed 0", "known of dpo seed 1", "lm_eval of dpo seed 1"]
    assert all_units["dpo seed 1"].needs == ("lm_eval of dpo seed 0",)
    assert all_units["known of dpo seed 1"].seconds == pytest.approx(4 * 0.1)
    total = found.total(list(all_units.values()))
    assert (total.calls, total.money, total.unknown) == (8, 0.5, ("lm_eval",))


def test_what_was_not_measured_is_not_counted_and_named():
    cells = (PlannedCell("dpo", 0, "to do", 10, 0, 0, "log-probs", 2), PlannedCell("x", 0, "to do", 10, 0, 0, "kl", 2))
    plan = planned(cells=cells)
    empty = Estimate(plan, Costs())
    total = empty.total(empty.units(plan.left))
    assert (total.wall, total.memory, total.unknown) == (None, None, ("dpo", "x"))
    _, known = units(plan)
    assert known["x seed 0"].seconds == 10 * 2 * 8 * 2.0 + 3 + 2 * 20 * 0.2, (
        "a class that was not measured: the dearest"
    )


def test_classes_are_the_statistics_that_cost_time():
    assert cost_class(get_loss("dpo")) == cost_class(get_variant("tis_dpo").loss) == "log-probs"
    assert cost_class(get_loss("tdpo2")) == cost_class(get_loss("tdpo2 + 0.1*sft")) == "kl_ref_pi"


def test_judge_calls_and_money_are_counted_without_asking():
    """hh: 3 prompts, 2 samples, against two opponents, in both orders; 1000 of money for a million tokens, one token out."""
    from plo.config import EvaluationConfig
    from plo.data import Pair, Row
    from plo.evals import get_model_evaluation

    row = Row(prompt="p" * 30, chosen="c" * 30, rejected="r" * 30, where="here")
    pair = Pair(prompt_ids=(1,), chosen_ids=(2,), rejected_ids=(3,), prompt="p" * 30, where="here", columns={}, row=row)
    options = {"prompts": 3, "samples": 2, "max_new_tokens": 8}
    judge = "openai:m@http://localhost:1/v1(price_in=1000, price_out=0)"
    for spec, cost in ((judge, 0.001), ("gold:sentiment", 0.0)):
        (one,) = plan_evaluations([get_model_evaluation("hh", options)], EvaluationConfig(judge=spec), [pair])
        assert (one.texts, one.tokens) == (6, 8)
        assert one.calls == (24 if spec == judge else 12), "a pointwise judge is asked once"
        assert (one.money > 24 * 90 / 3 * cost) if cost else one.money == 0.0
    # 500 prompts in both orders; 80 questions of two turns, each graded once; 805 instructions, once if official
    suites = {"arena_hard": {}, "mt_bench": {}, "alpaca_eval": {"official": True}, "reward_bench": {}}
    made = [get_model_evaluation(name, given) for name, given in suites.items()]
    planned = plan_evaluations(made, EvaluationConfig(judge=judge), [pair])
    assert [(one.texts, one.calls) for one in planned] == [(500, 1000), (160, 160), (805, 805), (None, 0)]
    few = {"arena_hard": {"prompts": 900}, "mt_bench": {"questions": 3}, "alpaca_eval": {"instructions": 7}}
    few["hh"] = options | {"temperatures": [1, 1, 0.5], "against": ["chosen", "chosen"]}
    made = [get_model_evaluation(name, given) for name, given in few.items()]
    planned = plan_evaluations(made, EvaluationConfig(judge=judge.replace("(", "(repeats=3, ")), [pair])
    assert [(one.texts, one.calls) for one in planned] == [(500, 3000), (6, 18), (7, 42), (12, 72)]


def test_a_pinned_judge_on_a_server_is_priced_and_one_in_this_process_is_free():
    from plo.config import EvaluationConfig
    from plo.data import Pair, Row
    from plo.evals import get_model_evaluation
    from plo.evals.judges import JudgeError
    from plo.evals.judges.judge import check_spec

    row = Row(prompt="p" * 30, chosen="c" * 30, rejected="r" * 30, where="here")
    pair = Pair(prompt_ids=(1,), chosen_ids=(2,), rejected_ids=(3,), prompt="p" * 30, where="here", columns={}, row=row)
    suite = [get_model_evaluation("hh", {"prompts": 3, "against": ["chosen"]})]
    pinned, prices = "pinned:qwen2.5-7b-pairs", "(price_in=1000, price_out=3000)"
    (served,) = plan_evaluations(suite, EvaluationConfig(judge=f"{pinned}@http://localhost:1/v1{prices}"), [pair])
    assert served.calls == 6 and served.money > 6 * (90 / 3 * 0.001 + 40 * 0.003)  # an answer has 40 tokens at most
    (own,) = plan_evaluations(suite, EvaluationConfig(judge=pinned), [pair])
    assert (own.calls, own.money) == (6, 0.0)
    with pytest.raises(JudgeError, match="no pinned judge 'nobody'"):
        check_spec("pinned:nobody@http://localhost:1/v1")


def test_the_judge_of_sampled_answers_is_counted_with_its_orders_repeats_and_prices(tiny):
    """k answers to a prompt are k (k - 1) / 2 meetings: 3 of 3."""
    server = "openai:m@http://localhost:1/v1(price_in=1000, price_out=0, repeats=2)"
    for judge, each in ((server, 2 * 2), ("gold:sentiment", 1)):
        sample = {"k": 3, "judge": judge, "prompts": 5}
        found = estimate(tiny(**{"data.origin": ["sampled"], "data.sample": sample}), measure=False)
        (answers,) = [unit for unit in found.units(found.plan.left) if unit.row == "answers"]
        assert answers.calls == 5 * 3 * each and (answers.money > 0.1 if judge == server else answers.money == 0)


def test_recorded_cells_show_what_further_seeds_take(tiny, monkeypatch):
    """Two seeds are recorded; a third takes their mean, and the parts agree with what was recorded."""
    experiment = tiny(losses=["dpo"], seeds=[0, 1])
    assert not compare(experiment).failed
    recorded = [json.loads(cell.tags["plo.costs"]) for cell in Tracker(create=False).cells()]
    trained = [one for one in recorded if one["steps"]]
    assert [one["evaluations"] for one in trained] == [2] * 4 and all(one["memory_gb"] > 0.1 for one in trained)

    more = tiny(losses=["dpo"], seeds=[0, 1, 2])
    found = estimate(more, measure=False)
    assert found.costs.figures["training log-probs"].source == "4 recorded cells"
    left = found.units(found.plan.left)
    assert [unit.name for unit in left] == ["reference seed 2", "sft seed 2", "dpo seed 2"]
    mean = sum(one["seconds"] for one in trained) / 4
    assert left[1].seconds == pytest.approx(mean, rel=0.02) and left[2].seconds == left[1].seconds
    known, calibrated = find_recorded(more), Costs.of({"cell": 0.01}, "here")
    rest = recorded_costs(known, found.plan.shape.tokens, found.plan.shape.samples, calibrated)
    tokens = sum(one["steps"] for one in trained) * 4 * found.plan.shape.tokens
    difference = found.costs.get("training log-probs") - rest.get("training log-probs")
    assert math.isclose(difference * tokens, 4 * 0.01, rel_tol=0.02), "fixed seconds are not divided among the steps"
    other = tiny(losses=["dpo"], seeds=[0, 1], **{"train.batch_size": 2})
    assert "training log-probs" not in estimate(other, measure=False).costs.figures, "another batch, another speed"
    monkeypatch.setattr("plo.experiment.recorded_costs.environment", lambda: {"plo.cpu": "another"})
    assert not estimate(more, measure=False).costs.figures
