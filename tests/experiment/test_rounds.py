"""Rounds of sampled training pairs: what is sampled and asked once, where a round starts, and what a table says of them."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from plo.config import ConfigError, Experiment
from plo.data import Pair, Row
from plo.data.exchange import to_trl
from plo.evals import register_evaluation
from plo.evals.judges import Judge, register_judge
from plo.evals.scoring import judge_version
from plo.experiment import rounds
from plo.experiment.answers import Answers
from plo.experiment.keys import Inputs, cell_key
from plo.experiment.looks import seeds_in_order
from plo.experiment.matrix import compare
from plo.experiment.plan import plan_comparison
from plo.experiment.preflight import configured_variants
from plo.experiment.sampling import answer_records, pairs_of_cell, sample_pairs
from plo.experiment.tuning import Result, tune
from plo.leaderboards import read, to_markdown
from plo.scorers import get_variant
from plo.subjects.sampling import Prompt
from plo.tracking import Tracker

ITERATED = {"data.origin": ["iterated(2)"], "data.sample": {"k": 3, "scorer": "letters"}}


@pytest.fixture(autouse=True)
def scored():
    """An evaluation that scores an answer by its letters, and how many answers it was asked for at a time."""
    asked = []

    @register_evaluation("letters", higher_is_better=True)
    def letters(samples):
        asked.append(len(samples))
        return samples["text"].str.len().to_frame("letters")

    return asked


def test_two_rounds_are_cells_and_another_rule_samples_nothing(tiny, scored, monkeypatch):
    starts, inner = {}, rounds.sampled

    def noted(stages, *arguments, **keywords):
        starts[keywords["number"]] = (stages.backbone.start.identity, stages.backbone.reference.identity)
        return inner(stages, *arguments, **keywords)

    monkeypatch.setattr(rounds, "sampled", noted)
    few = {"losses": ["sft"], "model.dtype": "float32", "model.peft": "full", "train.steps": 2, "eval_at": [1.0]}
    assert not compare(tiny(**few, **ITERATED)).failed
    assert starts[1][0] == starts[1][1] == starts[2][1] != starts[2][0]  # the reference stays, the start moves on

    tracker = Tracker("plo.db")
    [comparison] = tracker.comparisons()
    cells = {cell.name.removesuffix(" seed 0"): cell for cell in comparison.cells()}
    assert list(cells) == ["reference", "sft @ data=sampled", "sft @ data=iterated(2)"]
    prompts = int(cells["sft @ data=sampled"].metrics["oracle_queries"]) // 3
    answers = [stage for stage in tracker.stages() if stage["name"] == "answers"]
    assert [one["params"]["answers.policy"] for one in answers] == ["start", "sft @ data=sampled seed 0"]
    assert scored == [3 * prompts] * 2 and 10 < prompts < 24
    second = cells["sft @ data=iterated(2)"]
    assert second.metrics["oracle_queries"] == 6 * prompts and second.metrics["data_kl_start"] == 0
    about = json.loads(second.tags["plo.pairs"])
    assert (about["round"], about["policy"], about["oracle"]) == (2, "sft @ data=sampled seed 0", "letters")
    assert answers[1]["key"] in json.loads(second.tags["plo.stages"])

    table = to_markdown(read(tracker))
    assert "round 2: answers of round 1" in table and "oracle queries" in table and "data KL, end" in table
    assert "prompts by the model of round 1, of the same loss and seed, scored by letters, best/worst" in table

    monkeypatch.setattr("plo.experiment.answers.answers", None)  # what is sampled already is not sampled
    sample = {**ITERATED["data.sample"], "rule": "best/random"}
    assert not compare(tiny(**few, **{"data.origin": "sampled", "data.sample": sample})).failed
    assert len(scored) == 2 and len(comparison.cells()) == 4

    settings, status = comparison.config(), tracker.comparisons()[0].status
    [(seed, drawn, pairs)] = sample_pairs(tiny(**few, **{"data.sample": sample}))
    assert (tracker.comparisons()[0].config(), tracker.comparisons()[0].status) == (settings, status)
    list(sample_pairs(tiny(name="later", **few, **{"data.sample": sample})))
    assert tracker.comparisons("later")[0].status == "SCHEDULED"  # nothing of it is trained
    records = answer_records(drawn)
    assert (seed, drawn.queries, len(records)) == (0, 3 * prompts, prompts)
    for pair in pairs:
        row, [record] = to_trl(pair.row), [one for one in records if one["prompt"] == pair.row.prompt]
        best, said = max(record["scores"]), dict(zip(record["answers"], record["scores"], strict=True))
        assert said[row["chosen"]] == row["score_chosen"] == best > row["score_rejected"] == said[row["rejected"]]
    later = pairs_of_cell(tiny(**few, **ITERATED), "sft @ data=iterated(2) seed 0")
    assert len(later) == about["pairs"] and all(pair.columns["margin"] > 0 for pair in later)


def test_a_plan_has_the_rounds_and_the_answers_that_they_wait_for(tiny):
    plan = plan_comparison(tiny(losses=["dpo"], seeds=[0, 1], **ITERATED))
    needs = {cell.name: cell.needs for cell in plan.cells}
    assert len(plan.cells) == 2 * 5
    assert "dpo @ data=sampled seed 1" in needs["dpo @ data=iterated(2) seed 1"]
    answers = {stage.unit: stage for stage in plan.stages if stage.name == "answers"}
    assert len(answers) == 2 * 3  # of the start, and of the first models of sft and dpo, for two seeds
    first = answers["answers of seed 1"]
    assert first.pairs == 3 * len({pair for pair in range(plan.pairs)}) and set(first.variants) == {
        "sft @ data=sampled",
        "dpo @ data=sampled",
    }
    assert "dpo @ data=sampled seed 1" in answers["answers of seed 1 (3)"].needs


def test_rounds_are_tuned_together_on_the_pairs_of_the_first():
    train = [SimpleNamespace(prompt=f"p{i}") for i in range(40)]
    data = SimpleNamespace(train=train, digest="data")
    settings = {"origin": ["iterated(3)"], "sample": {"scorer": "letters"}}
    experiment = Experiment(
        losses=["dpo"], data=settings, train={"batch_size": 4, "lr": 1e-3}, tuning={"trials": 4}, primary="letters"
    )
    bench, found, asked = Inputs(experiment, None, data, ("letters",), (), "model"), {}, []

    def run(bench, cells):
        for cell in cells:
            if cell.key not in found:
                asked.append(cell.label)
                lr = cell.variant.train.get("lr", 1e-3) if cell.variant else 1e-3
                found[cell.key] = Result({"letters": lr, "kl": 1.0}, {"letters": [lr]}, 1.0)
        return {}

    variants = [one for one in configured_variants(experiment) if one.registered_name == "dpo"]
    tuned = tune(bench, variants, run, lambda: found)
    assert len(asked) == 1 + 4 + 3 + 1 and all("data=sampled" in label for label in asked[1:])
    points = [one.record["point"] for one in tuned]
    assert [one.variant.origin.round for one in tuned] == [1, 2, 3] and points[0] == points[1] == points[2] != {}
    assert tuned[2].given is variants[2] and f"lr={points[0]['train.lr']:g}" in tuned[2].variant.name


def test_every_loss_has_every_origin_unless_it_names_its_own_and_the_baseline_gives_its_rounds_its_seeds():
    experiment = Experiment(
        losses=["dpo", "ipo @ data=sampled flip=0.1"],
        data={"origin": ["offline", "iterated(2)"], "flip": [0, 0.2]},
        seeds=[0, 1],
        baseline="dpo @ data=iterated(2)",
    )
    variants = configured_variants(experiment)
    own = [one.name for one in variants if one.registered_name == "dpo"]
    data = ("", "data=sampled", "data=iterated(2)")
    wanted = {" ".join(filter(None, (each, noise))) for each in data for noise in ("", "flip=0.2")}
    assert {name.removeprefix("dpo").removeprefix(" @ ") for name in own} == wanted
    assert [one.name for one in variants if one.registered_name == "ipo"] == ["ipo @ data=sampled flip=0.1"]
    order = [(one.name if one else "reference", seed) for one, seed in seeds_in_order(experiment, variants, 2)]
    seeds = {
        name: [seed for each, seed in order if each == name]
        for name in ("dpo", "dpo @ data=sampled", "dpo @ data=iterated(2)")
    }
    assert seeds["dpo"] == [0, 1] and len(seeds["dpo @ data=iterated(2)"]) > 2
    assert seeds["dpo @ data=sampled"] == seeds["dpo @ data=iterated(2)"]


def test_keys_depend_on_the_pairs_and_those_of_offline_cells_on_none_of_the_settings_of_sampling():
    def keys(**data):
        experiment = Experiment(losses=["dpo"], data={"sample": {"scorer": "letters", **data}})
        inputs = Inputs(experiment, None, SimpleNamespace(train=[], digest="data"), (), (), "model")
        return {
            name: cell_key(inputs, get_variant(name), 0)
            for name in ("dpo", "dpo @ data=sampled", "dpo @ data=iterated(2)", "dpo @ flip=0.2")
        }

    plain, warm, budget = keys(), keys(temperature=0.7), keys(judge_calls=9)
    assert len(set(plain.values())) == 4 and plain == budget
    assert {name for name in plain if plain[name] != warm[name]} == {"dpo @ data=sampled", "dpo @ data=iterated(2)"}


def test_keys_depend_on_the_weights_of_the_sampled_policy_and_on_what_a_judge_asks():
    class Loaded(Inputs):
        weights = "some"

        def base_identity(self, stage):
            return [stage.model, self.weights]

    def keys(weights="some", **sample):
        experiment = Experiment(losses=["dpo"], data={"sample": sample})
        inputs = Loaded(experiment, None, SimpleNamespace(train=[], digest="data"), (), (), "model")
        object.__setattr__(inputs, "weights", weights)
        return [
            cell_key(inputs, get_variant(name), 0) for name in ("dpo", "dpo @ data=sampled", "dpo @ data=iterated(2)")
        ]

    offline, *sampled = keys(policy="org/model", scorer="letters")
    same, *other = keys("others", policy="org/model", scorer="letters")
    assert offline == same and not set(sampled) & set(other)

    @register_judge("moody")
    class Moody(Judge):
        def __init__(self, argument, template):
            self.name, self.version = "moody", asked

    asked = "one prompt"
    offline, *sampled = keys(judge="moody")
    judge_version.cache_clear()
    asked = "another prompt"
    same, *other = keys(judge="moody")
    assert offline == same and not set(sampled) & set(other)


def test_a_judges_budget_is_not_spent_by_several_processes(tiny):
    sample = {"judge": "gold:sentiment", "judge_calls": 9}
    several = SimpleNamespace(name="local", several=True)
    with pytest.raises(ConfigError, match="judge_calls=9 for a launch.*--workers 1"):
        compare(tiny(**{"data.origin": "sampled", "data.sample": sample}), engine=several)


def made(scores, texts=("a", "b", "c")):
    rows = [
        {"prompt_id": i, "sample": k, "text": text, "ids": (ord(text), 1), "score": float(score), "logp": -1.0}
        for i, own in enumerate(scores)
        for k, (text, score) in enumerate(zip(texts, own, strict=True))
    ]
    prompts = [Prompt((7, i), f"prompt {i}") for i in range(len(scores))]
    return Answers(pd.DataFrame(rows), prompts, len(rows), ("", ""), "letters")


def source(count, row=None):
    return [Pair((7, i), (3,), (4,), f"prompt {i}", f"row {i}", {}, row) for i in range(count)]


def test_pairs_are_the_sampled_tokens_with_their_scores_as_columns():
    messages = [{"role": "user", "content": "q"}]
    row = Row(messages, *[[{"role": "assistant", "content": text}] for text in "xy"])
    [pair] = made([[1, 4, 2]]).pairs("best/worst", source(1, row), 0)
    assert (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) == ((7, 0), (ord("b"), 1), (ord("a"), 1))
    assert pair.columns == {"margin": 3.0, "score_chosen": 4.0, "score_rejected": 1.0}
    assert pair.row.prompt == messages and pair.row.chosen == [{"role": "assistant", "content": "b"}]
    assert pair.where == "answers 1 and 0 to the prompt of row 0"


def test_a_turned_label_exchanges_the_columns_of_the_sides_and_the_sign_of_the_margin():
    pairs = made([[1, 4, 2]] * 50).pairs("best/worst", source(50, Row("q", "x", "y")), 0)
    noisy = rounds.with_noise(pairs, 0.5, 3)
    turned = [(a, b) for a, b in zip(pairs, noisy, strict=True) if a is not b]
    assert 10 < len(turned) < 40
    for clean, other in turned:
        assert (other.chosen_ids, other.rejected_ids) == (clean.rejected_ids, clean.chosen_ids)
        assert other.columns == {"margin": -3.0, "score_rejected": 4.0, "score_chosen": 1.0}
        assert (other.row.chosen, other.row.rejected) == (clean.row.rejected, clean.row.chosen)
    assert rounds.with_noise(pairs, 0.0, 3) == pairs


def test_the_kl_is_the_mean_log_ratio_of_all_answers_with_prompts_as_clusters(monkeypatch):
    answers = made([[0, 0, 0], [0, 0, 0]])
    monkeypatch.setattr("plo.experiment.answers.log_probs", lambda *_: [-2.0, -2.0, -2.0, -5.0, -5.0, -5.0])
    kl, error = answers.kl(None)
    # -1 + 2 = 1 and -1 + 5 = 4: mean 2.5, sd 3 / sqrt(2), over sqrt(2).
    assert kl == 2.5 and np.isclose(error, 1.5)


def test_answers_that_nothing_scores_are_refused_before_anything_is_sampled(tiny):
    with pytest.raises(ConfigError, match=r"name an evaluation of samples in data.sample.scorer, or a judge"):
        compare(tiny(**{"data.origin": "sampled"}))
