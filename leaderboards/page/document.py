"""The page as a document: its parts, rendered by a template, and the policy that forbids everything from outside."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from plo import store
from plo.leaderboards.board import Leaderboard
from plo.leaderboards.headline import design_lines, fragility_line
from plo.leaderboards.packed import pack
from plo.leaderboards.page.figures import draw_figures
from plo.leaderboards.page.finding import certainty, finding, task
from plo.leaderboards.page.methods import Method
from plo.leaderboards.page.samples import browser_data
from plo.leaderboards.page.tables import main_table, more_tables
from plo.leaderboards.page.text import breakable, short_names, visible, without_controls
from plo.values import without_paths

TEMPLATES = files("plo.leaderboards.page") / "templates"


def write_html(
    board: Leaderboard, path: str | Path, methods: Sequence[Method] = (), manifest: Mapping[str, Any] | None = None
) -> Path:
    """Write the page, completely or not at all, and return its path; a missing folder is created. See `to_html`."""
    path = Path(path)
    store.write_text(path, to_html(board, methods, manifest))
    return path


def to_html(board: Leaderboard, methods: Sequence[Method] = (), manifest: Mapping[str, Any] | None = None) -> str:
    """Return the leaderboard as one HTML page. Equal records give an equal page.

    The page loads nothing, and its Content-Security-Policy refuses whatever a text in it might ask for.

    Args:
        methods: descriptions of the methods in the table.
        manifest: what is needed to run the comparison again; embedded as `pack` makes it.
    """
    names = short_names(board)
    style, script, policy = page_assets()
    samples = browser_data(board, names)
    templates = Environment(
        loader=PackageLoader("plo.leaderboards.page"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    templates.filters |= {"visible": visible, "breakable": breakable, "link": _link}
    page = templates.get_template("page.html").render(
        title=visible(", ".join(board.comparisons) or "no comparison", 200),
        policy=policy, style=Markup(style), script=Markup(script),
        task=task(board), finding=finding(board, names), certainty=certainty(board, names), fragility=visible(fragility_line(board)),
        design=[visible(line) for line in design_lines(board) if line != fragility_line(board)],
        main=main_table(board, names), figures=draw_figures(board, names), more=more_tables(board, names),
        samples=samples, packed_samples=pack(samples), judges=_judges(board),
        notes=list(map(visible, board.notes)), methods=methods, shared=board.shared,
        manifest=manifest, packed_manifest=pack(manifest), legend=_legend(board),
    )  # fmt: skip
    return without_controls(page)


def page_assets() -> tuple[str, str, str]:
    """Return the page's style and script, and a Content-Security-Policy under which these run and nothing else is loaded or run."""
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8").strip() for name in ("page.css", "page.js"))

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    policy = (
        f"default-src 'none'; style-src {digest(style)}; script-src {digest(script)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    return style, script, policy


def _judges(board: Leaderboard) -> list[tuple[str, list[str]]]:
    """Return (title, lines) of the cards of the judges behind the evaluations, and the notes on the evaluations."""
    found = []
    for section in board.sections:
        for judge in section.judges:
            prompt = f", prompt {judge['prompt']}" if judge["prompt"] else ""
            card = judge.get("card") or [
                "a reward computed from the text, known exactly; it says nothing about other qualities"
                if judge["judge"].startswith("gold:")
                else "no card: `plo judge-check` measures its agreement with gold labels"
            ]
            lines = [visible(line) for line in (*card, *judge.get("measured", ()))]
            found.append((visible(without_paths(f"{section.title}: {judge['judge']}{prompt}"), 200), lines))
        if section.notes:
            found.append((visible(f"{section.title}: notes", 200), [visible(note) for note in section.notes]))
    return found


def _legend(board: Leaderboard) -> list[tuple[str, str]]:
    """Return (label, meaning) of each metric."""
    metrics = [board.descriptions[name] for name in board.metrics]
    return list({visible(metric.label, 60): visible(metric.meaning, 400) for metric in metrics}.items())


def _link(address: str) -> str:
    """Return an address that a link may have; "" for one that is not of the web."""
    return address if address.startswith(("https://", "http://")) else ""
