"""The sentiment data: openings that the splits do not share, and pairs labelled as the script says."""

import json
import math
import random
import re
from collections import Counter

import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from plo.data.sentiment.make_pairs import FOLDER, OFFENSIVE, READABLE, openings, pair

TEMPERATURE = 0.25


@pytest.fixture(scope="module")
def rows():
    return [json.loads(line) for line in (FOLDER / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def vader():
    return SentimentIntensityAnalyzer()


def words(text):
    return re.findall(r"[\w']+", text.lower())


def grams(texts, n):
    return {tuple(words(text)[i : i + n]) for text in texts for i in range(len(words(text)) - n + 1)}


def test_openings_of_the_splits_share_no_template():
    train, held_out = openings("train"), openings("eval")
    assert len(train) >= 272 and len(held_out) >= 104
    assert len({" ".join(words(opening)) for opening in train + held_out}) == len(train + held_out)
    assert not grams(train, 4) & grams(held_out, 4)
    assert not {tuple(words(text)[:3]) for text in train} & {tuple(words(text)[:3]) for text in held_out}


@pytest.mark.parametrize("split", ["train", "eval"])
def test_openings_are_short_neutral_and_unfinished(split, vader):
    for opening in openings(split):
        assert opening == opening.strip() and opening.isascii()
        assert 4 <= len(words(opening)) <= 10, opening
        assert opening[-1] not in ".?!", opening
        assert abs(vader.polarity_scores(opening)["compound"]) <= 0.3, opening


def test_pairs_belong_to_their_split(rows):
    assert (FOLDER / "pairs.jsonl").stat().st_size < 450_000
    counts = Counter(row["split"] for row in rows)
    assert counts["train"] >= 528 and counts["eval"] >= 190
    known = {split: set(openings(split)) for split in ("train", "eval")}
    assert all(row["prompt"] in known[row["split"]] for row in rows)
    assert max(Counter(row["prompt"] for row in rows).values()) <= 2


def test_responses_are_clean_text(rows):
    for row in rows:
        assert row["chosen"].strip() != row["rejected"].strip()
        for text in (row["chosen"], row["rejected"]):
            assert text.strip() and READABLE.fullmatch(text) and not OFFENSIVE.search(text)
            assert "<|" not in text


def test_rewards_are_those_of_vader(rows, vader):
    for row in rows:
        for side in ("chosen", "rejected"):
            expected = vader.polarity_scores(row[side])["compound"]
            assert row[f"{side}_reward"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("split", ["train", "eval"])
def test_labels_follow_bradley_terry(rows, split):
    gaps = [row["chosen_reward"] - row["rejected_reward"] for row in rows if row["split"] == split]
    gaps = [gap for gap in gaps if gap]  # without the ties, in which neither response is the better one
    likely = [1 / (1 + math.exp(-abs(gap) / TEMPERATURE)) for gap in gaps]
    share = sum(gap > 0 for gap in gaps) / len(gaps)
    error = math.sqrt(sum(p * (1 - p) for p in likely)) / len(gaps)
    assert abs(share - sum(likely) / len(likely)) < 3 * error


def test_pair_matches_best_with_worst():
    # At a temperature near 0 the better response always wins: (d, a), then (c, b).
    rows = pair(["b", "d", "a", "c"], [0.1, 0.9, -0.5, 0.4], temperature=1e-3, rng=random.Random(0))
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("d", "a"), ("c", "b")]
    assert rows[0]["chosen_reward"] == 0.9 and rows[0]["rejected_reward"] == -0.5


def test_pair_skips_equal_texts_and_a_lone_sample():
    assert pair(["same", " same"], [0.0, 0.0], temperature=0.25, rng=random.Random(0)) == []
    assert pair(["alone"], [0.0], temperature=0.25, rng=random.Random(0)) == []


def test_pair_draws_labels_at_the_stated_rate():
    # A gap of 0.25 at temperature 0.25: sigmoid(1) = 0.7311, standard error 0.0044 over 10,000 draws.
    rng = random.Random(0)
    wins = sum(pair(["x", "y"], [0.25, 0.0], temperature=0.25, rng=rng)[0]["chosen"] == "x" for _ in range(10_000))
    assert wins / 10_000 == pytest.approx(0.7311, abs=3 * 0.0044)
