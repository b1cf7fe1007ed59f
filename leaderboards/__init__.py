"""Leaderboards, built from recorded runs alone: `read` a store, then `write` Markdown, CSV and JSON."""

from plo import extras

extras.require("report", "plo.leaderboards")

from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.build import build, read
from plo.leaderboards.checks import LeaderboardError
from plo.leaderboards.render import to_csv, to_json, to_markdown, write

__all__ = [
    "Leaderboard",
    "LeaderboardError",
    "Row",
    "build",
    "read",
    "to_csv",
    "to_json",
    "to_markdown",
    "write",
]
