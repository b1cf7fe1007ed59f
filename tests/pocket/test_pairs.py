"""Pairs of the pocket task: disjoint prompts, labels by gold reward, fresh for every seed, and the model that reads them."""

import math

import numpy as np
import pytest
import torch

from plo.config import load_experiment
from plo.data import DataError, load_data, read_rows
from plo.data.report import DropReport
from plo.data.split import is_for_tuning
from plo.pocket import Prompt, ids_of, language, pairs, pocket_model, prompt_sets, prompts
from plo.pocket.words import EOS, ID


def reward(row, side):
    ids = ids_of(row[side], finished=True)
    return language().walk([Prompt.read(row["prompt"])], [ids]).reward.sum()


@pytest.fixture(scope="module")
def rows():
    return list(pairs(0))


def test_the_three_sets_of_prompts_are_disjoint_and_complete():
    sets = prompt_sets()
    assert len(sets["train"]) == 980 and min(len(sets["tune"]), len(sets["test"])) > 70
    assert {p.text for own in sets.values() for p in own} == {p.text for p in prompts()}


def test_a_row_has_the_difference_of_the_gold_rewards(rows):
    for row in rows[:20]:
        assert row["margin"] == pytest.approx(reward(row, "chosen") - reward(row, "rejected"))


def test_labels_are_drawn_from_the_sigmoid_of_half_the_difference(rows):
    sizes = np.array([abs(row["margin"]) for row in rows])
    expected = 1 / (1 + np.exp(-sizes / 2))  # probability that the better response is chosen
    agrees = np.array([row["margin"] > 0 for row in rows])
    untied = sizes > 0
    noise = math.sqrt((expected * (1 - expected))[untied].sum()) / untied.sum()
    assert abs(agrees[untied].mean() - expected[untied].mean()) < 4 * noise
    assert 0.74 < agrees.mean() < 0.82


def test_pairs_are_fresh_for_every_seed_and_held_out_ones_are_not(rows):
    others = list(pairs(1))
    texts, theirs = ([(r["chosen"], r["rejected"]) for r in drawn if r["split"] == "train"] for drawn in (rows, others))
    assert len(texts) == 2000 and len(set(texts) & set(theirs)) < 5
    assert [r for r in rows if r["split"] == "eval"] == [r for r in others if r["split"] == "eval"]
    assert rows[:50] == list(pairs(0))[:50]


def test_held_out_prompts_are_those_that_an_experiment_splits_for_tuning(rows):
    held_out = {row["prompt"] for row in rows if row["split"] == "eval"}
    assert held_out.isdisjoint(row["prompt"] for row in rows if row["split"] == "train")
    for name in ("tune", "test"):
        own = {prompt.text for prompt in prompt_sets()[name]}
        assert own == {prompt for prompt in held_out if is_for_tuning(prompt) == (name == "tune")}


def test_the_source_refuses_a_path():
    with pytest.raises(DataError, match="takes no path"):
        read_rows("pocket", "pocket.jsonl", {}, DropReport("pocket"))


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = pocket_model()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def test_the_model_is_small_and_ships_with_plo(model):
    assert sum(p.numel() for p in model[0].parameters()) == 102_976
    assert sum(file.stat().st_size for file in pocket_model().iterdir()) < 0.5e6


def test_the_tokenizer_gives_the_ids_of_the_language(model):
    data = load_data("pocket", None, tokenizer=model[1], options={"pairs": 20}, max_length=64)
    pair = data.train[0]
    assert pair.row is not None and isinstance(pair.row.chosen, str)
    assert list(pair.prompt_ids) == [ID[word] for word in pair.prompt.split()]
    assert list(pair.chosen_ids) == ids_of(pair.row.chosen, finished=True)
    assert model[1].decode(pair.chosen_ids, skip_special_tokens=True) == pair.row.chosen.strip()
    assert model[1].eos_token == EOS and len(data.train) == 20 and data.report.total == 0


def test_the_model_has_nearly_the_distribution_of_the_automaton(model):
    from plo.pocket.make import batch, divergence

    with torch.no_grad():
        assert divergence(model[0], *batch(prompts()[::4], 5)).item() < 0.05  # nats per response


def test_an_experiment_on_pocket_has_the_settings_of_the_task():
    experiment = load_experiment(None, {"data": "pocket", "losses": "dpo"})
    assert (experiment.model.name, experiment.model.peft, experiment.train.steps) == ("pocket", "full", 62)
    changed = load_experiment(None, {"data": "pocket", "losses": "dpo", "train.lr": 1e-3, "eval_at": [0.5]})
    assert (changed.train.lr, changed.train.batch_size, changed.eval_at) == (1e-3, 32, (0.5,))
    other = load_experiment(None, {"data": "pocket", "model": "embedded", "losses": "dpo"})
    assert (other.model.peft, other.train.lr, other.data.max_length) == ("lora", 2e-4, 64)
    assert load_experiment(None, {"losses": "dpo"}).model.name == "embedded"
