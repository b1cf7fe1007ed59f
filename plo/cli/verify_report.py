"""The report of `plo verify`: a table for one loss, a matrix for many, or JSON."""

from collections.abc import Sequence
from dataclasses import asdict

from rich.text import Text

from plo.cli.shared import console
from plo.cli.tables import print_rows
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


def print_report(report: Report) -> None:
    """Print the checks of one loss, with place and remedy of each failure, and the table of label models."""
    labels = [check for check in report.checks if check.name.startswith(LABELS)]
    rows = [
        {
            "check": check.name,
            "result": Text(check.result, COLOURS[check.result]),
            "measured, and what it means": _explained(check),
        }
        for check in report.checks
        if check not in labels
    ]
    say(console, (report.name, "bold"))
    print_rows(rows)
    _print_labels(labels)
    failed = [check.name for check in report.checks if check.result == FAILED]
    outcome = (f"failed: {', '.join(failed)}", "bold red") if failed else ("nothing failed", "green")
    say(console, outcome, f", {report.seconds:.1f} s")


def print_matrix(reports: list[Report]) -> None:
    """Print a row per loss and a column per check, and then a line for every check that did not pass."""
    rows = [
        {"loss": r.name, **{heading: _cell(r, names) for heading, names in COLUMNS.items()}, "s": f"{r.seconds:.1f}"}
        for r in reports
    ]
    print_rows(rows, gap=1)
    for report in reports:
        for check in report.checks:
            if check.result in (FAILED, NOT_APPLICABLE) or (check.result, check.name) == (DESCRIBED, "policy recovery"):
                text = "; ".join(filter(None, (check.measured, check.meaning, check.where, check.remedy)))
                say(
                    console,
                    (report.name, "bold"),
                    f" {check.name} ",
                    (check.result, COLOURS[check.result]),
                    f": {text}",
                )
    failed = sum(not report.passed for report in reports)
    seconds = sum(report.seconds for report in reports)
    say(console, f"{len(reports)} losses, {failed} failed, {seconds:.1f} s")


def print_json(reports: list[Report]) -> None:
    """Print a list of JSON objects, one per loss."""
    rows = [
        {
            "loss": report.name,
            "passed": report.passed,
            "seconds": round(report.seconds, 2),
            "checks": [asdict(check) for check in report.checks],
        }
        for report in reports
    ]
    print_rows(rows, as_json=True)


def _explained(check: Check) -> Text:
    lines = [line(check.measured)] if check.measured else []
    claim = "what must hold: " if check.result == FAILED else ""
    lines.append(line((f"{claim}{check.meaning}", "dim")))
    notes = {"where:": check.where, "remedy:": check.remedy}
    lines += [line((label, "red"), f" {text}") for label, text in notes.items() if text]
    return Text("\n").join(lines)


def _print_labels(checks: Sequence[Check]) -> None:
    if not checks:
        return
    best, start = (checks[0].values or {})["best"], (checks[0].values or {})["reference"]
    say(console, f"With other labels (described): the reward is {best:.3f} for pi* and {start:.3f} for the reference")
    rows = []
    for check in checks:
        numbers, (_, bracket, note) = check.values or {}, check.meaning.partition(" (")
        labels = line(check.name.removeprefix(LABELS), (f"{bracket}{note}", "dim"))
        rows.append(
            {"labels": labels, "KL to pi*, nats": f"{numbers['kl']:15.2g}", "reward": f"{numbers['reward']:6.3f}"}
        )
    print_rows(rows)


def _cell(report: Report, names: tuple[str, ...]) -> Text:
    results = [check.result for check in report.checks if check.name in names]
    for result, shown in ((FAILED, "FAIL"), (NOT_APPLICABLE, "-"), (DESCRIBED, "see"), (PASSED, "ok")):
        if result in results:
            return Text(shown, COLOURS[result])
    return Text(".", "dim")
