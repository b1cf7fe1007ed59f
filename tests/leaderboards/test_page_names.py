"""How the page names rows and counts: short enough for a figure, and still told apart."""

import pytest

from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.formatting import format_count
from plo.leaderboards.page import to_html
from plo.leaderboards.page.text import breakable, label, short_names, untuned


def test_counts_agree_with_their_nouns(make_board):
    page = to_html(make_board(["reference", "dpo", "ipo"], seeds=(0,)))
    assert "1 seed" in page and "1 seeds" not in page
    assert format_count([1, 3], "seed") == "1 to 3 seeds" and format_count([1, 1], "seed") == "1 seed"


def test_a_long_name_loses_its_middle_in_a_figure_and_breaks_at_punctuation_in_a_table():
    assert label("twdpo(scorer=gold_weights)", 26) == "twdpo(scorer=gold_weights)"
    assert label("twdpo(scorer=gold_weights)", 12) == "twdpo(…ghts)"
    assert label("a" * 10**6 + "\n b", 6) == "aaa… b"
    assert breakable("a_b(c=<b>)") == "a_<wbr>b(<wbr>c=<wbr>&lt;b&gt;)"


@pytest.mark.parametrize(
    ("variant", "point", "left"),
    [
        ("twdpo(scorer=shuffled(of=x), beta=0.195) @ lr=0.00161", {"train.lr": 0.00161, "beta": 0.195}, "twdpo(scorer=shuffled(of=x))"),
        ("adpo(beta=0.0652, window=4) @ lr=0.0007", {"train.lr": 0.0007, "beta": 0.0652}, "adpo(window=4)"),
        ("dpo(beta=0.2) @ lr=0.1", {"beta": 0.2, "train.lr": 0.1}, "dpo"),
        ("dpo(beta=0.2) @ lr=0.1, steps=3", {"train.lr": 0.1}, "dpo(beta=0.2) @ steps=3"),
        ("ipo(beta=0.25)", {"beta": 0.2}, "ipo(beta=0.25)"),
    ],
)  # fmt: skip
def test_what_tuning_chose_is_no_part_of_a_name(variant, point, left):
    assert untuned(Row(variant, "x", {}, tuning={"point": point})) == left
    assert untuned(Row(variant, "x", {})) == variant


def test_rows_are_named_as_briefly_as_they_are_told_apart():
    def named(variant, loss, tuned=True, **settings):
        return Row(variant, loss, settings, tuning={"point": {"beta": 0.2}} if tuned else None)

    rows = [
        named("dpo(beta=0.2)", "dpo"),  # its loss alone
        named("adpo(beta=0.2)", "adpo"),  # without what tuning chose
        named("adpo(beta=0.2, window=4)", "adpo"),
        named("ipo(beta=0.1)", "ipo", tuned=False),  # given so, not tuned
        named("ipo(beta=0.3)", "ipo", tuned=False),
        named("sft", "sft", tuned=False, lr="1"),  # the same variant with two settings
        named("sft", "sft", tuned=False, lr="2"),
    ]
    board = Leaderboard(rows, [], None, {}, [], [], [])
    assert list(short_names(board).values()) == [
        "dpo", "adpo", "adpo(window=4)", "ipo(beta=0.1)", "ipo(beta=0.3)", "sft [lr=1]", "sft [lr=2]",
    ]  # fmt: skip
