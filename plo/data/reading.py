"""Read the sound rows of a source: rename columns, recognise the format, count bad rows and oddities."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plo.data.errors import BadRow, DataError, Tie
from plo.data.messages import are_messages_as_text, parse
from plo.data.report import DropReport
from plo.data.rows import OWN_KEYS, SYSTEM_NAMES, Row, Text, check, names_of, to_row
from plo.data.shapes import Raw, recognise
from plo.data.sources import read_source

SIDES = ("chosen", "rejected")


def read_rows(
    source: str,
    path: str | Path | None,
    options: dict[str, Any],
    report: DropReport,
    columns: Mapping[str, str | None] | None = None,
) -> list[Row]:
    """Return the sound rows of a source, in its order, and record everything else in `report`.

    Args:
        columns: the source's name for each column that plo reads, such as {"prompt": "question"}; None leaves a
            column out.

    Raises:
        DataError: as in `read_source`, or there are no rows.
    """
    rows = []
    for raw in read_source(source, path, options):
        report.rows += 1
        given = raw = _renamed(raw, columns or {})
        try:
            if shape := recognise(raw):
                raw = shape.convert(raw)
                report.read_as[str(shape)] += 1
            row = to_row(raw)
            if reason := check(row):
                raise BadRow(reason)
        except Tie:
            report.ties += 1
            continue
        except BadRow as error:
            report.add(error.reason, given["where"], _excerpt(raw))
            continue
        _note(raw, row, report)
        rows.append(row)
    if not report.rows:
        raise DataError(f"The data source {report.source!r} gave no rows. Fill it, or choose another.")
    if report.ties == report.rows:
        raise DataError(f"{report.source}: all {report.rows} rows are ties. Add rows that prefer a response.")
    for what, sides in {"prompts": ("prompt",), "responses": SIDES}.items():
        if rows and all(_is_listed(getattr(row, side)) for row in rows for side in sides):
            raise DataError(
                f"{rows[0].where}: the {what} are lists of texts that were written as text, in all {len(rows)} rows, "
                f"such as {getattr(rows[0], sides[0])[:40]!r}. Write the text itself, without brackets and quotes."
            )
    _count_repeats(rows, report)
    return rows


def _renamed(raw: Raw, columns: Mapping[str, str | None]) -> Raw:
    for name, given in columns.items():
        if given is not None and given not in raw:
            raise DataError(
                f"{raw['where']}: data.columns takes {name!r} from the column {given!r}, which is missing; there are "
                f"{names_of(raw)}. Name one of them, or register a reader with plo.data.register_source."
            )
    kept = {name: value for name, value in raw.items() if name not in columns and name not in columns.values()}
    return kept | {name: raw[given] for name, given in columns.items() if given is not None}


def _note(raw: Raw, row: Row, report: DropReport) -> None:
    if any(are_messages_as_text(raw.get(name)) for name in ("prompt", *SIDES)):
        report.remarks["rows hold lists of messages written as text; they are read as messages"] += 1
    system = [name for name in SYSTEM_NAMES if isinstance(raw.get(name), str) and raw[name].strip()][:1]
    for name in system:
        place = "as their system message" if row.conversational else "before their prompt"
        report.remarks[f"rows have the column {name!r} {place}; data.columns: {{{name}: null}} leaves it out"] += 1
    for name, value in raw.items():
        if name not in OWN_KEYS and name not in system and isinstance(value, str | list | Mapping) and value:
            report.unused[name] = None


def _is_listed(side: Text) -> bool:
    """Return whether a text looks like "['an answer', 'another']": if all do, a column of lists became text."""
    if not isinstance(side, str) or not side.startswith(("['", '["')):
        return False
    try:
        value = parse(side)
    except ValueError:
        return False
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _excerpt(raw: Raw) -> str:
    return " | ".join(f"{name} {str(raw[name])[:60]!r}" for name in SIDES if name in raw)


def _count_repeats(rows: list[Row], report: DropReport) -> None:
    """Count exact duplicates, and pairs of responses that are preferred both ways round."""
    seen: set[tuple] = set()  # holds the rows' own strings, so it copies nothing
    contradicted: set[frozenset] = set()
    for row in rows:
        prompt, chosen, rejected = map(_hashable, (row.prompt, row.chosen, row.rejected))
        report.duplicates += (prompt, chosen, rejected) in seen
        if (prompt, rejected, chosen) in seen:
            contradicted.add(frozenset([(prompt, chosen), (prompt, rejected)]))
        seen.add((prompt, chosen, rejected))
    report.contradictions = len(contradicted)


def _hashable(text: Text) -> Any:
    return text if isinstance(text, str) else tuple((message["role"], message["content"]) for message in text)
