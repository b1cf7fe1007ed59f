"""What holds for every built-in scorer: one finite number a token, the same again, and a docstring that names their sum."""

from pathlib import Path

import pytest
import torch

import plo.scorers
from plo.data.rows import Row
from plo.losses import get_loss
from plo.scorers import SCORERS, get_scorer

BUILT_IN = [entry.name for entry in SCORERS if str(Path(plo.scorers.__file__).parent) in entry.origin]
OF_ANY_DATA = [name for name in BUILT_IN if not name.startswith("gold_")]  # the others know the pocket task alone


@pytest.fixture
def everything(material, make_tokenizer, tiny_llama, tokenize_row):
    """Material with texts, a model, and random log-probs of whatever a scorer wants trained."""
    tokenizer = make_tokenizer()
    texts = [(" Yes, it is.", "No."), ("A longer answer, with several words.", "Yes."), ("No.", "naïve 🦜")]
    pairs = [tokenize_row(Row(f"Question {i}?", *both, where=f"row {i}"), tokenizer) for i, both in enumerate(texts)]
    model = tiny_llama(
        vocab_size=len(tokenizer), max_position_embeddings=900, attn_implementation="eager", dtype=torch.float32
    )

    def make(scorer):
        names = [f"{name}{suffix}" for name in scorer.stages for suffix in ("", ".reference")]
        return material(pairs, names, tokenizer=tokenizer, model=model)

    return make


def test_the_built_in_scorers_are_found():
    simple = {"uniform", "position_decay", "subsample", "random_scores", "shuffled"}
    assert simple | {"log_ratio", "tis_rank", "tgdpo", "attention_judge"} <= set(BUILT_IN)


@pytest.mark.parametrize("name", OF_ANY_DATA)
def test_one_finite_number_a_token_and_the_same_again(everything, name):
    scorer = get_scorer(name)
    first, again = (list(scorer(everything(scorer))) for _ in range(2))  # shapes and finiteness: Scorer checks them
    assert len(first) == 3
    for sides, others in zip(first, again, strict=True):
        for values, other in zip(sides, others, strict=True):
            assert values.dtype == torch.float32 and not values.requires_grad and values.equal(other)


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_a_scorer_says_of_itself(name):
    scorer = get_scorer(name)
    assert " sum" in scorer.entry.load().__doc__ and scorer.entry.facts.paper
    assert get_scorer(scorer.name).params == scorer.params
    for stage in scorer.stages.values():
        assert "weights" not in get_loss(stage.loss).needs  # nothing that has to be scored first
