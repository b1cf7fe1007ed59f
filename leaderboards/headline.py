"""The lines above a leaderboard: what won, and by what test."""

import math
from collections.abc import Iterable
from typing import Any

from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.columns import label
from plo.leaderboards.formatting import format_count, format_number

STOPPED = {
    "settled": "every verdict is settled",
    "futile": "no further seeds would settle a verdict",
    "last": "it was the last look",
}


def headline(board: Leaderboard) -> str:
    """Return a sentence with the verdict on every variant, best first, beginning with whether one is better."""
    name, base = board.primary_metric, board.baseline
    if name is None or base is None:
        lacking = "primary metric with a direction" if name is None else "baseline"
        remedy = "Name one with --primary" if name is None else "Name one with --baseline"
        return f"No winner: the runs have no {lacking}, so nothing is compared. {remedy}."
    metric, title = board.descriptions[name], board.title(base)
    if board.is_hidden(name):
        return f"No winner: {label(board, name)} comes from a judge that agrees with gold labels no better than chance."
    judged = [row for row in board.rows if row.verdict]
    if not judged:
        return f"No winner: no variant was compared with {title} in {label(board, name)}."
    judged.sort(key=lambda row: row.differences[name].mean, reverse=metric.better != "↓")

    def listed(word: str) -> str:
        found = [row for row in judged if row.verdict == word]
        gains = (
            f"{board.title(row)} ({format_number(row.differences[name].mean, metric.digits, '+')})" for row in found
        )
        return ", ".join(gains)

    behind = "".join(
        f" {word.capitalize()}: {found}." for word in ("worse", "equivalent", "undecided") if (found := listed(word))
    )
    if better := listed("better"):
        return f"Better than {title} in {label(board, name)}: {better}.{behind}"
    none = "the only variant is not" if len(judged) == 1 else f"none of {len(judged)} variants is"
    return f"No winner: {none} better than {title} in {label(board, name)}.{behind}"


def design_lines(board: Leaderboard) -> list[str]:
    """Return sentences on the test: its size and level, seed variances, minimal detectable difference, looks."""
    if not (facts := design_facts(board)):
        return []
    name = str(board.primary_metric)
    digits, design = board.descriptions[name].digits, facts
    margin = "no margin of equivalence" if design["margin"] is None else f"margin ±{design['margin']:g}"
    of_look = " (.05 over all looks)" if design["looks"] else ""
    size = f"{format_count(design['seeds'], 'seed')} x {format_count(design['prompts'], 'prompt')}"
    lines = [
        f"Primary metric: {label(board, name)}, {margin}. Baseline: {board.title(_base(board))}, "
        f"{format_count([len(_base(board).runs)], 'seed')}. {format_count([design['tests']], 'variant')}, {size}; Holm at alpha {design['alpha']:g}{of_look}.",
        "Each difference has a seed variance of its own (fewer than 5 rows that share seeds)."
        if design["s0"] is None
        else f"Seed variance shared by the rows: s0 {design['s0']:.3g}, d0 {design['d0']:.3g} degrees of freedom.",
    ]
    if not math.isnan(design["detectable"]):
        detectable = format_number(design["detectable"], digits)
        lines.append(f"The design detects {detectable} with power .8 (it describes the design and decides nothing).")
    if ranked := [row for row in board.rows if row.rank]:
        lines.append(f"Ranked: {len(ranked)} rows that are {ranked[0].status}.")
    if line := fragility_line(board):
        lines.append(line)
    if design["looks"]:
        planned = f"Looks at {', '.join(map(str, design['looks']))} seeds: "
        if not design["look"]:
            lines.append(f"{planned}none was taken, because a variant has fewer than {design['looks'][0]} seeds.")
        else:
            why = STOPPED.get(design["stop"], "the next look is due")
            lines.append(f"{planned}the last one was at {design['look']}; {why}.")
    return lines


def fragility_line(board: Leaderboard) -> str:
    """Return a sentence on how little would move the first place; "" where the metric has no finite bounds."""
    if board.design is None or (one := board.design.fragility) is None:
        return ""
    titles = {row.name: board.title(row) for row in board.rows}
    prompts = "" if one.drops is None else f", or if {one.drops} prompts were left out"
    return (
        f"First place: {titles[one.first]}. {titles[one.rival]} would take it if {one.flips} of their "
        f"{one.values} values changed as far as they can{prompts}."
    )


def design_facts(board: Leaderboard) -> dict[str, Any]:
    """Return what `design_lines` says, as JSON values; {}: nothing was tested."""
    if (design := board.design) is None:
        return {}
    found, pool = design.judgement, design.pool
    compared = found.compared.values()
    return {
        "margin": design.margin, "tests": len(compared), "alpha": found.alpha,
        "seeds": _ends(one.seeds for one in compared), "prompts": _ends(one.prompts for one in compared),
        "s0": pool and pool.s0, "d0": pool and pool.d0, "detectable": design.detectable,
        "fragility": design.fragility and design.fragility._asdict(),
        "looks": list(design.looks), "look": found.look, "stop": found.stop,
    }  # fmt: skip


def _base(board: Leaderboard) -> Row:
    assert board.baseline is not None  # a design has one
    return board.baseline


def _ends(numbers: Iterable[int]) -> list[int]:
    found = list(numbers)
    return [min(found), max(found)]
