"""Leaderboards, built from recorded runs alone: `read` a store, `write` Markdown, CSV and JSON."""

from plo.leaderboards.render import to_csv, to_json, to_markdown, write
from plo.leaderboards.table import Leaderboard, LeaderboardError, Row, build, read

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
