"""Diversity of samples that are cut to one length."""

import pandas as pd
import pytest

from plo.leaderboards.board import Row
from plo.leaderboards.fixed_length import diversity_at_fixed_length


def rows_of(**runs):
    return [Row(name, name, {}, runs=by_seed) for name, by_seed in runs.items()]


def frame(*texts, each=1):
    return pd.DataFrame({"prompt_id": [i // each for i in range(len(texts))], "text": texts})


def test_texts_are_cut_to_the_words_that_half_of_the_prompts_have():
    """Prompt 0 has 3 words in every text, prompt 1 only 1: half of the prompts have 3.

    Of "a b c" and "a b c": 2 unique of 4 bigrams. Of "a b a": 2 of 2 bigrams ("a b", "b a") in each seed.
    """
    samples = {
        "long": frame("a b c d e f", "a b c x", "a", "b", each=2),
        "short 0": frame("a b a", "c", each=1),
        "short 1": frame("A  B a q", "c d", each=1),
    }
    found = diversity_at_fixed_length(rows_of(long={"0": "long"}, short={"0": "short 0", "1": "short 1"}), samples)
    assert found is not None
    assert (found.n, found.words, found.prompts) == (2, 3, 1)
    assert found.distinct["long"].mean == pytest.approx(2 / 4)
    assert (found.distinct["short"].mean, found.distinct["short"].sd, found.distinct["short"].n) == (1, 0, 2)


def test_length_alone_changes_nothing():
    text = "a b c d e f g h a b c d e f g h"
    samples = {"long": frame(text, text), "short": frame(text[:15], text[:15])}
    found = diversity_at_fixed_length(rows_of(long={"0": "long"}, short={"0": "short"}), samples)
    assert found is not None
    assert found.words == 8
    assert found.distinct["long"].mean == found.distinct["short"].mean == pytest.approx(7 / 14)


def test_nothing_is_measured_of_one_row_or_of_empty_texts():
    samples = {"a": frame("x y"), "b": frame(""), "c": pd.DataFrame({"prompt_id": [7], "text": ["x y"]})}
    assert diversity_at_fixed_length(rows_of(a={"0": "a"}), samples) is None
    assert diversity_at_fixed_length(rows_of(a={"0": "a"}, b={"0": "b"}), samples) is None
    assert diversity_at_fixed_length(rows_of(a={"0": "a"}, c={"0": "c"}), samples) is None
    assert diversity_at_fixed_length(rows_of(a={"0": "a"}, b={"0": "gone"}), samples) is None
