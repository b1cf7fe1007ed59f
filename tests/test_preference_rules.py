"""Pairs of scored answers by rule, and label noise by seed and pair: values worked out by hand."""

import math

import pytest

from plo.origin import Origin, OriginError
from plo.preference_rules import RuleError, choose_pairs, is_turned, read_rule

SCORES = [[1.0, 3.0, -2.0], [5.0, 5.0, 5.0], [0.0, math.nan, 1.0], [math.nan, math.nan, math.nan], [2.0, 1.0, 2.0]]
TEXTS = [["a", "b", "c"], ["a", "b", "c"], ["a", "b", "c"], ["a", "b", "c"], ["same", "other", "same"]]
KEYS = ["p", "q", "r", "s", "t"]


def chosen(rule, scores=SCORES, texts=TEXTS, keys=KEYS):
    return choose_pairs(scores, texts, read_rule(rule), keys)


def test_best_and_worst_without_ties_and_without_answers_that_have_no_score():
    # Prompt 1 is a tie, prompt 3 has no scores; the first of two best answers is chosen.
    assert chosen("best/worst") == [(0, 1, 2), (2, 2, 0), (4, 0, 1)]


def test_ties_at_either_end():
    assert chosen("best/worst", [[3.0, 1.0, 1.0]], [["a", "b", "c"]], ["p"]) == [(0, 0, 2)]  # the last of the worst
    assert chosen("best/worst", [[2.0, 3.0, 3.0]], [["a", "b", "c"]], ["p"]) == [(0, 1, 0)]  # the first of the best
    assert chosen("best/random", [[3.0, 3.0, 1.0]], [["a", "b", "c"]], ["p"]) == [
        (0, 0, 2)
    ]  # a tie with the best is not worse
    assert chosen("margin(0.5)", [[1.0]], [["a"]], ["p"]) == chosen("margin(0.5)", [[]], [[]], ["p"]) == []


def test_equal_texts_make_no_pair():
    assert chosen("best/worst", [[1.0, 2.0]], [["same", "same"]], ["p"]) == []


def test_a_random_answer_is_any_but_the_best_and_the_same_for_the_same_key():
    prompts = 200
    found = chosen(
        "best/random", [[0.0, 9.0, 1.0, 2.0]] * prompts, [list("abcd")] * prompts, [f"{i}" for i in range(prompts)]
    )
    assert {one for _, one, _ in found} == {1}
    counts = [sum(rejected == answer for _, _, rejected in found) for answer in (0, 2, 3)]
    assert sum(counts) == prompts and min(counts) > 40  # a third each, 66.7 with an sd of 6.7
    again = chosen("best/random", [[0.0, 9.0, 1.0, 2.0]] * 2, [list("abcd")] * 2, ["7", "8"])
    assert [rejected for _, _, rejected in again] == [found[7][2], found[8][2]]


def test_a_quantile_of_the_margin_leaves_out_the_closest_pairs():
    # Margins 5, 1 and 1: a third of three pairs is one, and of the two equal ones the later prompt's is left out.
    assert chosen("margin(0.3333333)") == [(0, 1, 2), (2, 2, 0), (4, 0, 1)]  # ceil(2.0000001) = 3
    assert chosen("margin(0.34)") == [(0, 1, 2), (2, 2, 0)]
    assert chosen("margin(0.9)") == [(0, 1, 2)]
    assert chosen("margin(0)") == chosen("best/worst")


@pytest.mark.parametrize("rule", ["best", "margin(1)", "margin(1.5)", "margin", "best/best"])
def test_a_rule_that_does_not_exist_is_refused_with_those_that_do(rule):
    with pytest.raises(RuleError, match=r"write best/worst, best/random or margin\(0.5\)"):
        read_rule(rule)


def test_noise_turns_a_share_by_seed_and_pair_and_more_noise_turns_the_same_pairs_too():
    pairs = [f"pair {i}" for i in range(2000)]
    little, more, other = (
        [p for p in pairs if is_turned(share, seed, p)] for share, seed in ((0.1, 0), (0.3, 0), (0.1, 1))
    )
    assert set(little) < set(more) and little != other
    assert 150 < len(little) < 250 and 520 < len(more) < 680  # sd 13 and 20
    assert little == [p for p in reversed(pairs) if is_turned(0.1, 0, p)][::-1]  # whatever the order
    assert not any(is_turned(0.0, 0, p) for p in pairs)


def test_origins_are_read_and_an_iterated_one_has_the_rounds_before_it():
    assert Origin.read("iterated(3)", 0.2).settings == {"data": "iterated(3)", "flip": 0.2}
    assert [one.name for one in Origin.read("iterated(3)").rounds] == ["sampled", "iterated(2)", "iterated(3)"]
    assert Origin.read().settings == {} and Origin.read().rounds == [Origin()]
    assert Origin.read("iterated(1)") == Origin.read("sampled")


@pytest.mark.parametrize(
    "given", [{"data": "iterated(0)"}, {"data": "online"}, {"flip": 1}, {"flip": -0.1}, {"flip": "x"}]
)
def test_an_origin_that_does_not_exist_is_refused(given):
    with pytest.raises(OriginError, match="write"):
        Origin.read(**given)
