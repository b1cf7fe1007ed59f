"""Figures of the page: which row comes first, and judged win rates along training."""

import re
from dataclasses import replace

import pytest

from plo.leaderboards.page import to_html
from plo.leaderboards.page.curves import judged_figure
from plo.leaderboards.page.differences import forest_figure
from plo.leaderboards.page.finding import finding
from plo.leaderboards.page.looks import choose_looks
from plo.leaderboards.page.pairs import pairs_figure
from plo.leaderboards.page.text import short_names
from plo.leaderboards.sections import Section
from plo.metric import Metric


@pytest.mark.parametrize(
    ("better", "order", "arrow"), [("↑", ["ipo", "bpo", "kto"], "→"), ("↓", ["kto", "bpo", "ipo"], "←")]
)
def test_the_best_row_comes_first_whichever_direction_is_better(make_board, better, order, arrow):
    board = make_board(
        ["reference", "dpo", "bpo", "ipo", "kto"], level={"dpo": 0.5, "ipo": 0.8, "bpo": 0.35, "kto": 0.1}
    )
    board.descriptions["reward"] = replace(board.descriptions["reward"], better=better)
    for row in board.rows:
        row.verdict = row.verdict and "better"
    names, looks = short_names(board), choose_looks(board)
    said = finding(board, names)
    assert sorted(order, key=said.index) == order and f"Δ reward from dpo ({arrow} better)" in to_html(board)
    assert f"{'Higher' if better == '↑' else 'Lower'} is better" in to_html(board)
    forest = forest_figure(board, names, looks)
    assert forest is not None and sorted(order, key=forest.alternative.index) == order
    assert [*looks] == ["dpo", *order]  # the baseline, then the best
    pairs = pairs_figure(board, names, looks)
    assert pairs is not None and sorted(order, key=pairs.svg.index) == order


def test_judged_win_rates_along_training_are_drawn_unless_their_judge_is_no_better_than_chance(make_board):
    """Seeds win .2, .3 and .4 at half of the training and .7, .7 and .4 at its end: means .3 and .6."""
    board = make_board(["reference", "dpo", "ipo"])
    at_end, curves = (0.7, 0.7, 0.4), {}
    for seed in range(3):
        curves[f"run-1-{seed}"] = {0.5: (0.2, 0.3, 0.4)[seed], 1.0: at_end[seed]}
        curves[f"run-0-{seed}"] = {1.0: 0.5}  # the reference, at one point
    judges = [{"judge": "moody", "prompt": "", "informative": True}]
    name = "win_rate_curve.win_rate_reference"
    values = {name: {run: curve[1.0] for run, curve in curves.items()}}
    section = Section("win_rate_curve", "win_rate_curve", "s", {}, judges=judges, values=values, curves={name: curves})
    section.curves["win_rate_curve.length"] = curves  # no win rate
    section.values["win_rate_curve.length"] = values[name]
    described = {one: Metric(one, "win rate") for one in section.values}
    board = replace(board, sections=[section], descriptions=board.descriptions | described)
    (drawn,) = re.findall('<figure id="figure-judged".*?</figure>', to_html(board), re.DOTALL)
    assert 'Last values: win rate curve.win rate reference: dpo 0.60."' in drawn
    assert "means over 3 seeds; bands: ± 1 standard deviation over seeds" in drawn
    line = judged_figure(board, short_names(board), choose_looks(board))
    assert line is not None and "ipo" not in line.alternative and "length" not in line.alternative
    judges[0]["informative"] = False
    assert 'id="figure-judged"' not in to_html(board)
