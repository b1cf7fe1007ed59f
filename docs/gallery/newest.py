"""Put the newest style, script and policy into the published pages, for changes of page.css and page.js: python docs/gallery/newest.py.

Where anything else of a page has changed, its records are needed: `make study` and `make gallery` write it again.
"""

import re
from pathlib import Path

from plo.leaderboards.page.document import page_assets

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "leaderboards/published/credit/page.html", ROOT / "docs/gallery/alpaca_eval.html"]


def newest(page: str) -> str:
    """Return the page with the style, the script and the policy of this version of plo."""
    style, script, policy = page_assets()
    for pattern, text in (
        ("(?<=<style>).*?(?=</style>)", style),
        ("(?<=<script>).*?(?=</script>)", script),
        ('(?<="Content-Security-Policy" content=").*?(?=">)', policy.replace("'", "&#39;")),
    ):
        page = re.sub(pattern, lambda _, text=text: text, page, count=1, flags=re.DOTALL)
    return page


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(newest(path.read_text("utf-8")), "utf-8")
