"""The leaderboard as one HTML page that opens offline: no request, no script or style but its own, all text inert."""

from plo.leaderboards.page.document import to_html, write_html
from plo.leaderboards.page.methods import Method

__all__ = ["Method", "to_html", "write_html"]
