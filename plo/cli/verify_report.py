"""The report of `plo verify`: a table for one loss, a matrix for many, or JSON."""

import json
import math
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from plo.terminal import line, say
from plo.verify import DESCRIBED, FAILED, NOT_APPLICABLE, PASSED, Check, Report

COLOURS = {PASSED: "green", FAILED: "bold red", NOT_APPLICABLE: "yellow", DESCRIBED: "cyan"}
COLUMNS = {  # of the matrix: heading and the checks under it
    "deriv.": ("derivative",),
    "reach": ("gradient reach",),
    "padding": ("padding",),
    "order": ("batch order",),
    "split": ("batch split",),
    "extremes": ("extremes",),
    "direct.": ("direction",),
    "gener.": ("h convex", "h' rising", "closed form", "minimum", "generator"),
    "recovery": ("policy recovery",),
}
LABELS = "labels: "


def print_report(report: Report, console: Console) -> None:
    """Print the checks of one loss, with place and remedy of each failure, and the table of label models."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("check", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("measured, and what it means", overflow="fold")
    for check in report.checks:
        if not check.name.startswith(LABELS):
            colour = COLOURS[check.result]
            table.add_row(line(check.name), Text(check.result, colour), _explained(check))
    say(console, (report.name, "bold"))
    console.print(table)
    _print_labels([check for check in report.checks if check.name.startswith(LABELS)], console)
    failed = [check.name for check in report.checks if check.result == FAILED]
    outcome = (f"failed: {', '.join(failed)}", "bold red") if failed else ("nothing failed", "green")
    say(console, outcome, f", {report.seconds:.1f} s")


def print_matrix(reports: list[Report], console: Console) -> None:
    """Print a row per loss and a column per check, and then a line for every check that did not pass."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("loss", no_wrap=True)
    for heading in (*COLUMNS, "s"):
        table.add_column(heading, no_wrap=True)
    for report in reports:
        table.add_row(line(report.name), *(_cell(report, names) for names in COLUMNS.values()), f"{report.seconds:.1f}")
    console.print(table)
    for report in reports:
        for check in report.checks:
            if check.result in (FAILED, NOT_APPLICABLE) or (
                check.result == DESCRIBED and check.name == "policy recovery"
            ):
                colour = COLOURS[check.result]
                text = "; ".join(part for part in (check.measured, check.meaning, check.where, check.remedy) if part)
                say(console, (report.name, "bold"), f" {check.name} ", (check.result, colour), f": {text}")
    failed = sum(not report.passed for report in reports)
    seconds = sum(report.seconds for report in reports)
    say(console, f"{len(reports)} losses, {failed} failed, {seconds:.1f} s")


def as_json(reports: list[Report]) -> str:
    """Write a list of objects, one per loss, as JSON; numbers that JSON does not have (nan, inf) are texts."""
    rows = [
        {
            "loss": report.name,
            "passed": report.passed,
            "seconds": round(report.seconds, 2),
            "checks": [_plain(asdict(check)) for check in report.checks],
        }
        for report in reports
    ]
    return json.dumps(rows, indent=2, allow_nan=False)


def _explained(check: Check) -> Text:
    lines = [line(check.measured)] if check.measured else []
    claim = "what must hold: " if check.result == FAILED else ""
    lines.append(line((f"{claim}{check.meaning}", "dim")))
    if check.where:
        lines.append(line(("where:", "red"), f" {check.where}"))
    if check.remedy:
        lines.append(line(("remedy:", "red"), f" {check.remedy}"))
    return Text("\n").join(lines)


def _print_labels(checks: list[Check], console: Console) -> None:
    if not checks:
        return
    values = [check.values or {} for check in checks]
    best, start = values[0].get("best", math.nan), values[0].get("reference", math.nan)
    say(console, f"With other labels (described): the reward is {best:.3f} for pi* and {start:.3f} for the reference")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("labels")
    table.add_column("KL to pi*, nats", justify="right")
    table.add_column("reward", justify="right")
    for check, numbers in zip(checks, values, strict=True):
        note = check.meaning[check.meaning.index(" (") :] if " (" in check.meaning else ""
        kl, reward = numbers.get("kl", math.nan), numbers.get("reward", math.nan)
        table.add_row(line(check.name.removeprefix(LABELS), (note, "dim")), f"{kl:.2g}", f"{reward:.3f}")
    console.print(table)


def _cell(report: Report, names: tuple[str, ...]) -> Text:
    found = [check for check in report.checks if check.name in names]
    for result, shown in ((FAILED, "FAIL"), (NOT_APPLICABLE, "-"), (DESCRIBED, "see")):
        if any(check.result == result for check in found):
            return Text(shown, COLOURS[result])
    return Text("ok", COLOURS[PASSED]) if found else Text(".", "dim")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
