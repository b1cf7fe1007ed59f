"""Sentiment and the cheap measures of diversity against values worked out by hand."""

import math

import pandas as pd
import pytest

from plo.evals.ngrams import distinct, repetition, self_bleu_pairwise, words
from plo.evals.sentiment import compound, gold_win_rate, sentiment


def valence_sum(text):
    return sentiment(pd.DataFrame({"text": [text], "tokens": [1]}))["valence"].item()


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("good", 1.9),  # vader_lexicon.txt: good 1.9, bad -2.5, great 3.1
        ("good good bad", 1.9 + 1.9 - 2.5),
        ("not good", 1.9 * -0.74),  # negation
        ("very good", 1.9 + 0.293),  # booster
        ("great " * 40, 40 * 3.1),
        ("table", 0.0),
        ("", 0.0),
    ],
)
def test_valence_is_what_compound_saturates(text, total):
    assert valence_sum(text) == pytest.approx(total, abs=1e-9)
    assert compound(text) == pytest.approx(total / math.sqrt(total**2 + 15), abs=5.1e-5)  # 4 digits


def test_valence_still_grows_where_compound_is_one():
    assert compound("great " * 400) == compound("great " * 200) == 1.0
    assert valence_sum("great " * 400) == pytest.approx(2 * valence_sum("great " * 200))
    assert valence_sum("good!!!") == valence_sum("good") and compound("good!!!") > compound("good")


def test_sentiment_is_per_token():
    samples = pd.DataFrame({"text": ["good good", "", "good"], "tokens": [4, 1, 0]}, index=[4, 2, 9])
    result = sentiment(samples)
    assert result.index.tolist() == [4, 2, 9]
    assert result["valence"].tolist() == pytest.approx([3.8 / 4, 0.0, 1.9])


def test_gold_win_rate_by_hand():
    def rewards(*values):
        return pd.DataFrame({"prompt_id": [0] * len(values), "reward": values})

    # (.5 against .1, .5, .9) and (.9 against the same): 1 + .5 + 0 and 1 + 1 + .5, of 6
    assert gold_win_rate(rewards(0.5, 0.9), rewards(0.1, 0.5, 0.9)).loc[0, "gold_win_rate"] == 4 / 6
    assert math.isnan(gold_win_rate(rewards(math.nan), rewards(0.1)).loc[0, "gold_win_rate"])


def test_distinct_1():
    assert words("Don't stop, DON'T!") == ["don't", "stop", ",", "don't", "!"]
    assert distinct(["a b a", "b c"]) == 3 / 5
    assert distinct(["a b", "c d"]) == 1.0
    assert math.isnan(distinct(["", "  "]))


def test_repetition():
    # a b c a b c: 4 trigrams, abc bca cab abc: 3 unique
    assert repetition("a b c a b c") == 1 / 4
    assert repetition("! " * 12) == 1 - 1 / 10
    assert repetition("two words") == repetition("") == 0.0


def test_self_bleu_pairwise_by_hand():
    # "a b c d e" against "a b c d f": precisions 4/5, 3/4, 2/3, 1/2, equal lengths, so no brevity penalty.
    pair = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert self_bleu_pairwise(["a b c d e", "a b c d f"]) == pytest.approx(pair)
    # "a b c" against "a b c d e": all that is there matches, effective order 3, brevity exp(1 - 5/3). The
    # other way: 3/5, 2/4, 1/3 and no 4-gram of 2, which exponential smoothing counts as 1/2 of one.
    there, back = 100 * math.exp(1 - 5 / 3), 100 * (3 / 5 * 2 / 4 * 1 / 3 * 0.5 / 2) ** 0.25
    assert self_bleu_pairwise(["a b c", "a b c d e"]) == pytest.approx((there + back) / 2)
    # Three texts: the mean over all 6 ordered pairs, of which 4 share no word.
    assert self_bleu_pairwise(["a b c d e", "a b c d f", "x y z"]) == pytest.approx(2 * pair / 6)


def test_self_bleu_of_texts_that_are_alike_or_not_there():
    assert self_bleu_pairwise(["yes", "yes"]) == 100.0
    assert self_bleu_pairwise(["", " ", ""]) == 100.0  # collapsed to silence is not diverse
    assert self_bleu_pairwise(["", "some words"]) == 0.0
    assert math.isnan(self_bleu_pairwise(["alone"]))
