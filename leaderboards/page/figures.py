"""The figures of the page, in its order; one for which nothing was recorded is left out."""

from collections.abc import Callable, Mapping

from plo.leaderboards.board import Leaderboard
from plo.leaderboards.page.credit import credit_figure, tokens_figure
from plo.leaderboards.page.curves import frontier_figure, judged_figure, training_figure, tuning_figure
from plo.leaderboards.page.differences import forest_figure
from plo.leaderboards.page.diversity import diversity_figure
from plo.leaderboards.page.drawing import Figure
from plo.leaderboards.page.looks import Look, choose_looks
from plo.leaderboards.page.pairs import pairs_figure

Drawer = Callable[[Leaderboard, Mapping[str, str], Mapping[str, Look]], Figure | None]
DRAWERS: tuple[Drawer, ...] = (
    forest_figure,
    frontier_figure,
    diversity_figure,
    training_figure,
    judged_figure,
    tuning_figure,
    pairs_figure,
    credit_figure,
    tokens_figure,
)


def draw_figures(board: Leaderboard, names: Mapping[str, str]) -> list[Figure]:
    """Draw the figures of a board.

    Args:
        names: {row's name: its short name}.
    """
    looks = choose_looks(board)
    return [figure for draw in DRAWERS if (figure := draw(board, names, looks)) is not None]
