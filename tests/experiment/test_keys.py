"""Keys of cells, stages and token weights hold what the numbers depend on, and nothing else."""

import hashlib
from dataclasses import replace

import pytest
from staged import trained_bench

from plo.data import Pair
from plo.experiment import scores
from plo.experiment.keys import cell_key
from plo.experiment.matrix import compare
from plo.experiment.workbench import workbench
from plo.scorers import Stage, get_scorer, get_variant
from plo.tracking import Tracker

pytestmark = pytest.mark.usefixtures("oracle_loss")


def test_a_cell_is_the_same_with_stages_before_it_and_without(tiny):
    dropout = {"model.lora_dropout": 0.2}
    compare(tiny(name="with", losses=["sepo", "dpo"], **dropout))
    compare(tiny(name="without", losses=["dpo"], **dropout))
    one, other = ({c.name: c for c in Tracker(create=False).cells(n)}["dpo seed 0"] for n in ("with", "without"))
    assert one.history("loss") == other.history("loss") and one.metrics["kl"] == other.metrics["kl"]


def test_keys_of_stages_are_those_of_recorded_comparisons(tiny):
    """A formula of its own for the pairs would train every recorded comparison with a stage anew, under another key."""
    stages = trained_bench(tiny()).stages
    one, two = (
        Pair(prompt_ids=(i, 2), chosen_ids=(3,), rejected_ids=(4, 5), columns={}, prompt="", where="") for i in (1, 6)
    )
    stages.pairs = [one, two]

    assert stages.digest() == hashlib.sha256(b"((1, 2), (3,), (4, 5))((6, 2), (3,), (4, 5))").hexdigest()
    assert stages.digest(reversed=True, share=0.5) == hashlib.sha256(b"((1, 2), (4, 5), (3,))").hexdigest()


def test_keys_hold_what_the_numbers_depend_on(tiny, tiny_llama, tmp_path):
    import shutil

    from transformers import AutoConfig

    def margin_loss(pairs):
        return pairs.columns["margin"] * pairs.log_ratio_margin()

    margin_loss.needs = ("ref_logps", "column:margin")
    bench = trained_bench(tiny())
    stages, stage = bench.stages, Stage(loss=margin_loss)
    judge = get_scorer("attention_judge")

    def keys():
        plain = scores.scores_key(stages, get_scorer("uniform"), 0)
        return plain, stages.key(stage), scores.scores_key(stages, judge, 0), stages.key(Stage())

    stages.pairs = [replace(pair, columns={"margin": 1.0}) for pair in stages.pairs]
    before = keys()
    stages.pairs = [replace(pair, columns={"margin": 2.0}) for pair in stages.pairs]
    after = keys()
    assert all(a != b for a, b in zip(before[:3], after[:3], strict=True)) and before[3] == after[3]
    stages.tokenizer("a text", truncation=True, max_length=1)  # leaves a state behind
    assert keys() == after
    stages.tokenizer.chat_template = "{{ messages[0].content }}"
    assert keys()[2] != after[2] and keys()[:2] == after[:2]

    # another model's weights, under the same path
    small = tmp_path / "small"
    shutil.copytree(tmp_path / "tiny", small)
    variant = get_variant("weighted", scorer=f"log_ratio(model='{small}')")
    size = AutoConfig.from_pretrained(small).vocab_size
    found = set()
    for seed in (3, 4):
        tiny_llama(seed=seed, vocab_size=size, num_hidden_layers=1).float().save_pretrained(small)
        found.add(cell_key(workbench(tiny()), variant, 0))
    assert len(found) == 2
