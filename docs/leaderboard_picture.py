"""Draw docs/leaderboard.svg, the picture of README: `plo leaderboard` in a terminal, from the recorded runs of the demo.

plo demo && python docs/leaderboard_picture.py
"""

import io
import re
from pathlib import Path

from rich.console import Console

from plo.leaderboards import read
from plo.leaderboards.terminal import to_terminal
from plo.tracking import Tracker

WIDTH = 110
WEB_FONTS = r"@font-face \{.*?\}\s*"  # rich loads its font from the network; the picture must not
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"

console = Console(record=True, width=WIDTH, file=io.StringIO())
console.print(to_terminal(read(Tracker(create=False), "demo"), WIDTH), highlight=False)
drawn = console.export_svg(title="plo leaderboard demo", unique_id="plo")
drawn = re.sub(WEB_FONTS, "", drawn, flags=re.DOTALL).replace("Fira Code, monospace", FONTS)
Path(__file__).with_name("leaderboard.svg").write_text(drawn, encoding="utf-8")
