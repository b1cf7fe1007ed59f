"""`gold_advantage` and `gold_weights` against advantages that follow from the automaton by hand."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from plo.data import Pair
from plo.pocket import ids_of, language, pocket_model
from plo.pocket.grammar import GOOD, PROMISERS
from plo.pocket.words import ID
from plo.scorers import ScorerError, get_scorer

PROMPT = "calm anna on the inn :"
PROMISED, PLAIN = "the owner promised wine . it came .", "the room was good ."


@pytest.fixture
def material():
    start = tuple(ID[word] for word in PROMPT.split())
    chosen, rejected = (tuple(ids_of(text, finished=True)) for text in (PROMISED, PLAIN))
    pair = Pair(start, chosen, rejected, PROMPT, "here", {})
    return SimpleNamespace(pairs=[pair], tokenizer=AutoTokenizer.from_pretrained(pocket_model()), seed=0)


def test_advantages_by_hand(material):
    [(chosen, rejected)] = list(get_scorer("gold_advantage")(material))
    words = PROMISED.split()

    # `it came` pays 3 with probability .9 and -3 else: 2.4 is expected at `it`, so `came` is worth .6 more.
    assert chosen[words.index("came")] == pytest.approx(
        3 - (0.9 * 3 - 0.1 * 3), abs=0.06
    )  # but for what follows praise
    assert chosen[words.index("promised")] == chosen[words.index("wine")] == 0  # nothing else may follow
    assert chosen[words.index("owner")] > 2  # the promise is made here
    value = language().values[language().grammar.start(1)]
    assert chosen.sum() == pytest.approx(3 - value, abs=1e-5) and rejected.sum() == pytest.approx(1 - value, abs=1e-5)
    assert GOOD[1] == 0.5 and PROMISERS["owner"] == 0.9


def test_gold_weights_are_the_sizes_of_the_advantages(material):
    [signed], [sizes] = (list(get_scorer(name)(material)) for name in ("gold_advantage", "gold_weights"))
    for side, size in zip(signed, sizes, strict=True):
        assert torch.equal(side.abs(), size)


def test_another_task_is_refused(material):
    material.pairs = [Pair((1,), (2,), (3,), "Question?", "here", {})]
    with pytest.raises(ScorerError, match="pocket task alone. .* is no prompt.*Set data=pocket"):
        list(get_scorer("gold_weights")(material))
    material.tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 0})
    with pytest.raises(ScorerError, match="The tokens are not its words"):
        list(get_scorer("gold_weights")(material))
