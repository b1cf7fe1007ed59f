"""What `plo verify` prints: a table for one loss, a matrix for many, or JSON."""

import json
import math
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
    """The checks of one loss, two lines each; for a failure where and the remedy; then the labels' table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("check", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("measured, and what it means", overflow="fold")
    for check in report.checks:
        if not check.name.startswith(LABELS):
            colour = COLOURS[check.result]
            table.add_row(line(check.name), Text(check.result, colour), _told(check))
    say(console, (report.name, "bold"))
    console.print(table)
    _print_labels([check for check in report.checks if check.name.startswith(LABELS)], console)
    failed = [check.name for check in report.checks if check.result == FAILED]
    outcome = (f"failed: {', '.join(failed)}", "bold red") if failed else ("nothing failed", "green")
    say(console, outcome, f", {report.seconds:.1f} s")


def print_matrix(reports: list[Report], console: Console) -> None:
    """A row a loss, a column a check; then a line for whatever did not pass."""
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
                told = "; ".join(part for part in (check.measured, check.meaning, check.where, check.remedy) if part)
                say(console, (report.name, "bold"), f" {check.name} ", (check.result, colour), f": {told}")
    failed = sum(not report.passed for report in reports)
    seconds = sum(report.seconds for report in reports)
    say(console, f"{len(reports)} losses, {failed} failed, {seconds:.1f} s")


def as_json(reports: list[Report]) -> str:
    """A list of objects, one a loss; numbers that JSON cannot say (nan, inf) as text."""
    rows = [
        {
            "loss": report.name,
            "passed": report.passed,
            "seconds": round(report.seconds, 2),
            "checks": [_plain(check.as_dict()) for check in report.checks],
        }
        for report in reports
    ]
    return json.dumps(rows, indent=2, allow_nan=False)


def _told(check: Check) -> Text:
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
    say(console, f"Of other labels (described): the reward's pi* has {best:.3f}, the reference {start:.3f}")
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
