"""The commands that write for readers: `leaderboard`, and `docs` for the pages of the methods."""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from plo.cli.parameters import Store
from plo.cli.shared import console, log
from plo.store import write_text
from plo.terminal import plain, say

MANIFEST = "manifest.json"


def docs(out: Annotated[Path, typer.Option(help="Folder to write the pages to.")] = Path("docs/methods")):
    """Write a page for each built-in loss, recipe and token scorer, from their docstrings and what is registered.

    Examples:
        plo docs --out docs/methods
    """
    from plo.pages import write

    written = write(out)
    log.info(f"{len(written)} pages written to {out}.")


def leaderboard(
    comparisons: Annotated[
        list[str],
        typer.Argument(
            metavar="[COMPARISON | diff A B]",
            help="Name of a comparison or the beginning of its key, default all; or diff and two of them, or files: pages or "
            "manifests.",
        ),
    ] = [],  # noqa: B006
    baseline: Annotated[
        str | None,
        typer.Option(help="Variant to compare the others with. Default: that of the experiment, or the reference."),
    ] = None,
    primary: Annotated[
        str | None,
        typer.Option(help="Metric that verdicts and ranks are about. Default: that of the experiment, or the reward."),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            min=0, help="Difference below which two variants are equivalent. Default: that of the experiment."
        ),
    ] = None,
    metric: Annotated[
        list[str], typer.Option(help="A metric to show; repeatable. Default: all that were recorded.")
    ] = [],  # noqa: B006
    store: Store = None,
    out: Annotated[Path, typer.Option(help="Folder to write leaderboard.md, .csv and .json to.")] = Path("leaderboard"),
    latex: Annotated[bool, typer.Option("--latex", help="Write leaderboard.tex too, a table for \\input.")] = False,
    manifest: Annotated[
        bool, typer.Option("--manifest", help="Write manifest.json too, which plo reproduce runs again.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="File to write the leaderboard to as one HTML page, which opens offline.")
    ] = None,
    values: Annotated[
        Path | None, typer.Option(help="File for the values of single prompts behind the table, .csv or .csv.gz.")
    ] = None,
):
    """Print the leaderboard of recorded runs, in a pipe as Markdown, and write it as Markdown, CSV and JSON.

    `diff A B` prints what differs between two leaderboards, and which of their rows may be compared.

    Examples:
        plo leaderboard hh-first --baseline dpo
        plo leaderboard diff hh-first page.html
        plo leaderboard hh-first --html page.html --values values.csv.gz
    """
    from plo.leaderboards import read, to_markdown, write
    from plo.leaderboards.latex import to_latex
    from plo.leaderboards.manifest import manifest as manifest_of
    from plo.tracking import Tracker

    if comparisons[:1] == ["diff"] and len(comparisons) == 3:
        return _diff(comparisons[1], comparisons[2], store)
    if len(comparisons) > 1:
        raise typer.BadParameter(f"give one comparison, or diff and two: {' '.join(comparisons)}")
    comparison = comparisons[0] if comparisons else None
    board = read(Tracker(store, create=False), comparison, baseline, metric or None, primary=primary, margin=margin)
    write(board, out)
    if console.is_terminal:
        from plo.leaderboards.terminal import to_terminal

        table = to_terminal(board, console.width)
        console.print(table)
        console.print()
    else:
        print(plain(to_markdown(board)))
    log.info(f"Written to {out}/leaderboard.md, .csv and .json.")
    if latex:
        _write(out / "leaderboard.tex", to_latex(board))
    made = manifest_of(board) if manifest or html is not None else None
    if manifest:
        _write(out / MANIFEST, json.dumps(made, indent=1, allow_nan=False) + "\n")
    if outcome := _write_frontier(board, out):
        log.info(f"Reward against KL: {outcome}")
    if html is not None:
        from plo.leaderboards.page import write_html

        size = write_html(board, html, _methods(board), made).stat().st_size
        log.info(f"Page: {html}, {size / 1e6:.1f} MB, which opens offline.")
    if values is not None:
        from plo.leaderboards.values import write_values

        log.info(f"Values of single prompts: {write_values(board, values)} lines in {values}.")


def _write(path: Path, text: str) -> None:
    write_text(path, text)
    log.info(f"Written to {path}.")


def _diff(a: str, b: str, store: str | None) -> None:
    """Print what differs between two leaderboards, each a comparison of the store, a page or a manifest."""
    from plo.leaderboards import read
    from plo.leaderboards.diff import diff, to_lines
    from plo.leaderboards.manifest import manifest
    from plo.leaderboards.manifest_file import read_manifest
    from plo.tracking import Tracker

    def found(name: str) -> Any:
        if Path(name).is_file():
            return read_manifest(Path(name))
        return manifest(read(Tracker(store, create=False), name))

    for text in to_lines(diff(found(a), found(b)), a, b):
        say(console, text)


def _write_frontier(board: Any, out: Path) -> str:
    """Write reward against KL if a gold reward was recorded. Return what was written, or why nothing was."""
    from plo.leaderboards import frontier
    from plo.leaderboards.checks import LeaderboardError
    from plo.leaderboards.frontier_plot import plot

    if not any({"reward", "kl"} <= cell.metrics.keys() for cell in board.cells):
        return ""
    try:
        frame = frontier.frontier(board)
        (out / "frontier.md").write_text(frontier.to_markdown(frame), encoding="utf-8")
        plot(frame, out / "frontier.png")
    except LeaderboardError as error:  # the table is there without it
        return f"not drawn. {error}"
    return "frontier.md and .png."


def _methods(board: Any) -> list[Any]:
    """Return descriptions of the registered losses, recipes and scorers that the variants of a table name."""
    from plo.leaderboards.page import Method
    from plo.losses import LOSSES
    from plo.scorers import RECIPES, SCORERS

    known = {entry.name: entry for registry in (SCORERS, LOSSES, RECIPES) for entry in registry}
    named = sorted({word for row in board.rows for word in re.findall(r"\w+", row.variant)} & known.keys())
    return [Method(name, _idea(known[name].load()), _paper(known[name].facts.paper)) for name in named]


def _idea(method: Any) -> str:
    from plo.docstring import read_docstring
    from plo.scorers.recipe import Recipe

    if isinstance(method, Recipe):
        return f"The loss {method.loss} with the token weights of {method.scorer}."
    return read_docstring(method).summary


def _paper(text: str) -> str:
    """Return the address of a paper on arXiv; "" for any other source."""
    return f"https://arxiv.org/abs/{text}" if re.fullmatch(r"\d{4}\.\d{5}", text) else ""
