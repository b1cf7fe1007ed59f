"""What `plo verify` prints: a table for one loss, a matrix for many, or JSON."""

import json
import math
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

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
            table.add_row(check.name, f"[{colour}]{check.result}[/{colour}]", _told(check))
    console.print(f"[bold]{escape(report.name)}[/bold]")
    console.print(table)
    _print_labels([check for check in report.checks if check.name.startswith(LABELS)], console)
    failed = [check.name for check in report.checks if check.result == FAILED]
    outcome = f"[bold red]failed: {', '.join(failed)}[/bold red]" if failed else "[green]nothing failed[/green]"
    console.print(f"{outcome}, {report.seconds:.1f} s", highlight=False)


def print_matrix(reports: list[Report], console: Console) -> None:
    """A row a loss, a column a check; then a line for whatever did not pass."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("loss", no_wrap=True)
    for heading in (*COLUMNS, "s"):
        table.add_column(heading, no_wrap=True)
    for report in reports:
        table.add_row(
            escape(report.name), *(_cell(report, names) for names in COLUMNS.values()), f"{report.seconds:.1f}"
        )
    console.print(table)
    for report in reports:
        for check in report.checks:
            if check.result in (FAILED, NOT_APPLICABLE) or (
                check.result == DESCRIBED and check.name == "policy recovery"
            ):
                colour = COLOURS[check.result]
                told = "; ".join(part for part in (check.measured, check.meaning, check.where, check.remedy) if part)
                head = f"[bold]{escape(report.name)}[/bold] {check.name} [{colour}]{check.result}[/{colour}]"
                console.print(f"{head}: {escape(told)}", highlight=False)
    failed = sum(not report.passed for report in reports)
    seconds = sum(report.seconds for report in reports)
    console.print(f"{len(reports)} losses, {failed} failed, {seconds:.1f} s", highlight=False)


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


def _told(check: Check) -> str:
    lines = [escape(check.measured)] if check.measured else []
    claim = "what must hold: " if check.result == FAILED else ""
    lines.append(f"[dim]{claim}{escape(check.meaning)}[/dim]")
    if check.where:
        lines.append(f"[red]where:[/red] {escape(check.where)}")
    if check.remedy:
        lines.append(f"[red]remedy:[/red] {escape(check.remedy)}")
    return "\n".join(lines)


def _print_labels(checks: list[Check], console: Console) -> None:
    if not checks:
        return
    values = [check.values or {} for check in checks]
    best, start = values[0].get("best", math.nan), values[0].get("reference", math.nan)
    console.print(
        f"Of other labels (described): the reward's pi* has {best:.3f}, the reference {start:.3f}", highlight=False
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("labels")
    table.add_column("KL to pi*, nats", justify="right")
    table.add_column("reward", justify="right")
    for check, numbers in zip(checks, values, strict=True):
        note = check.meaning[check.meaning.index(" (") :] if " (" in check.meaning else ""
        kl, reward = numbers.get("kl", math.nan), numbers.get("reward", math.nan)
        table.add_row(f"{check.name.removeprefix(LABELS)}[dim]{escape(note)}[/dim]", f"{kl:.2g}", f"{reward:.3f}")
    console.print(table)


def _cell(report: Report, names: tuple[str, ...]) -> str:
    found = [check for check in report.checks if check.name in names]
    for result, shown in ((FAILED, "FAIL"), (NOT_APPLICABLE, "-"), (DESCRIBED, "see")):
        if any(check.result == result for check in found):
            return f"[{COLOURS[result]}]{shown}[/{COLOURS[result]}]"
    return f"[{COLOURS[PASSED]}]ok[/{COLOURS[PASSED]}]" if found else "[dim].[/dim]"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
