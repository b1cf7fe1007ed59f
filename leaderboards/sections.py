"""What evaluations of level "model" found of the cells: a section of the leaderboard for each evaluation and settings."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd

from plo.leaderboards.metrics import ADJUSTED, Metric, of_section
from plo.statistics.intervals import StatisticsError
from plo.statistics.length import length_adjusted
from plo.tracking import Finding, RecordedCell, TrackingError, allowed_name

JUDGED = "*win_rate*"


@dataclass
class Section:
    """An evaluation of level "model" with the settings that its numbers share: code, options, judge, opponent.

    Attributes:
        title: the evaluation's name, with what tells it from the table's other sections of that evaluation. It begins
            every metric's full name, `<title>.<metric>`.
        params: options that differ from their defaults, judge, against.
        notes: what it said beside its numbers.
        but_judge: digest of the settings without the judge: sections that share it differ in their judge alone.
        judges: {"judge", "version", "prompt", "given"} of each that gave its verdicts, and where one was measured "card"
            (lines) and "informative".
        recorded: {metric's short name: what was recorded of it}; empty of a finding that an earlier version recorded.
        values: {metric's full name: {run id of a cell: value}}.
        items: {metric's full name: {run id of a cell: its values by prompt}}, of those whose items were recorded.
    """

    evaluation: str
    title: str
    settings: str
    params: dict[str, str]
    but_judge: str = ""
    notes: list[str] = field(default_factory=list)
    judges: list[dict[str, Any]] = field(default_factory=list)
    recorded: dict[str, Metric] = field(default_factory=dict)
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    items: dict[str, dict[str, pd.Series]] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        return list(self.values)

    def short(self, name: str) -> str:
        """The metric's name without the title."""
        return name.removeprefix(f"{self.title}.")

    def how(self, name: str) -> Metric:
        """How the metric of that full name is read and shown."""
        return of_section(self.evaluation, self.short(name), self.recorded)

    def judged(self, name: str) -> bool:
        """Whether the metric is a judge's verdicts, or what was made of them."""
        return bool(self.judges) and fnmatchcase(self.short(name), JUDGED)

    def hidden(self, name: str) -> bool:
        """Whether the metric is a verdict of a judge whose agreement with gold labels includes chance."""
        return self.judged(name) and any(judge.get("informative") is False for judge in self.judges)

    @property
    def trusted(self) -> bool:
        """No judge was asked, or every one that was agrees with gold labels beyond chance."""
        return all(judge.get("informative") or judge["judge"].startswith("gold:") for judge in self.judges)

    def keep(self, names: Collection[str]) -> None:
        """Only these of its metrics."""
        self.values = {name: self.values[name] for name in names if name in self.values}


def sections(
    cells: Sequence[RecordedCell],
    checks: Sequence[Mapping[str, Any]],
    notes: list[str],
    wanted: Collection[str] | None = None,
) -> list[Section]:
    """One for every evaluation and settings that a cell was evaluated with, in order of title.

    Args:
        checks: cards of judges, oldest first (`Tracker.judge_checks`). Of several cards of a judge that on most pairs counts.
        notes: is given what could not be read.
        wanted: names of metrics; sections that have none of them are not read. None: all.
    """
    groups: dict[tuple[str, str], dict[str, Finding]] = {}
    for cell in cells:
        for finding in cell.findings:
            groups.setdefault((finding.evaluation, finding.settings), {})[cell.run_id] = finding
    made = []
    for (evaluation, settings), found in groups.items():
        title = _title(evaluation, settings, groups)
        if wanted is None or any(name.startswith(f"{title}.") for name in wanted):
            try:
                made.append(_section(Section(evaluation, title, settings, _params(found)), found, checks))
            except TrackingError as error:
                notes.append(str(error))
    return sorted(made, key=lambda section: section.title)


def _section(section: Section, found: Mapping[str, Finding], checks: Sequence[Mapping[str, Any]]) -> Section:
    tables, lengths, notes, judges = {}, {}, {}, {}
    for run, finding in found.items():
        tables[run], about = finding.items.rename(columns=allowed_name), finding.about  # as metrics are recorded
        notes |= dict.fromkeys(about["notes"])
        judges |= {json.dumps(judge): judge for judge in about["judges"]}
        lengths |= {allowed_name(name): [*map(allowed_name, columns)] for name, columns in about["lengths"].items()}
        section.but_judge = about["but_judge"]
        section.recorded |= {allowed_name(one["name"]): Metric.from_dict(one) for one in about.get("described", [])}
        by_prompt = tables[run].groupby("prompt_id").mean(numeric_only=True)
        for metric, value in sorted(finding.metrics.items()):
            name = f"{section.title}.{metric}"
            section.values.setdefault(name, {})[run] = value
            if metric in by_prompt:
                section.items.setdefault(name, {})[run] = by_prompt[metric].astype(float)
    section.notes = list(notes)
    section.judges = [judge | _card(judge, checks) for judge in judges.values()]
    for metric, (own, opponent) in lengths.items():
        _adjust(section, metric, tables, {metric: "win", own: "length", opponent: "base_length"})
    return section


def _adjust(section: Section, metric: str, tables: Mapping[str, pd.DataFrame], columns: Mapping[str, str]) -> None:
    """Put the length-adjusted rate beside a win rate: one fit over all cells, so made here.

    A model in it is a cell, one variant and seed. A single cell is left alone: its slope would be told from nothing but
    its own verdicts.
    """
    frames = [
        table[["prompt_id", *columns]].rename(columns=columns).astype({"win": float}).assign(model=run)
        for run, table in tables.items()
        if {"prompt_id", *columns} <= set(table)
    ]
    frame = pd.concat(frames).dropna() if frames else pd.DataFrame({"model": []})
    if frame["model"].nunique() < 2:
        return
    try:
        fit = length_adjusted(frame)
    except StatisticsError as error:
        section.notes.append(f"{ADJUSTED}{metric}: none, for: {error}")
        return
    name, raw = f"{section.title}.{ADJUSTED}{metric}", list(section.values)
    section.values[name] = fit.rates["rate"].to_dict()
    section.items[name] = {run: fit.items[run] for run in fit.items}
    place = raw.index(f"{section.title}.{metric}") + 1
    section.keep([*raw[:place], name, *raw[place:]])
    section.notes.append(
        f"{ADJUSTED}{metric}: one fit over {len(fit.rates)} cells, sd of prompts {fit.prompt_sd:.2f} (by the data) and of cells' "
        f"length slopes {fit.slope_sd:g} (chosen), in logits. It is not AlpacaEval's length-controlled rate, and cells that "
        f"are added move it."
    )


def _params(found: Mapping[str, Finding]) -> dict[str, str]:
    return next(iter(found.values())).params


def _title(evaluation: str, settings: str, groups: Mapping[tuple[str, str], Mapping[str, Finding]]) -> str:
    """The evaluation's name, and in brackets what tells these settings from the others that it ran with."""
    others = {other: _params(found) for (name, other), found in groups.items() if name == evaluation}
    own = others.pop(settings)
    telling = {key for other in others.values() for key in own.keys() | other.keys() if own.get(key) != other.get(key)}
    shown = [f"{key}={own.get(key, 'default')}" for key in sorted(telling)]
    if any(own == other for other in others.values()):  # other code, or another content of the same file
        shown.append(f"settings {settings[:8]}")
    return f"{evaluation} [{', '.join(shown)}]" if shown else evaluation


def _card(judge: Mapping[str, Any], checks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    same = [check for check in checks if (check["judge"], check["version"]) == (judge["judge"], judge["version"])]
    best = max(reversed(same), key=lambda check: check["pairs"], default=None)
    return {"card": best["card"], "informative": best["informative"]} if best else {}


def primary(metrics: Sequence[str], found: Sequence[Section], how: Mapping[str, Metric]) -> str | None:
    """The reward where there is one, else the first win rate: of a judge with an informative card, if there is such, and
    never of an uninformative one; else the first metric of samples of which a direction is better."""
    if "reward" in metrics:
        return "reward"
    rates = [
        name for section in sorted(found, key=lambda section: not section.trusted) for name in section.metrics
        if section.short(name).startswith("win_rate") and not section.hidden(name) and section.how(name).better
    ]  # fmt: skip
    of_sections = {name for section in found for name in section.metrics}
    others = (n for n in metrics if n not in of_sections and how[n].better and how[n].table == "reward")
    return next(iter([*rates, *others]), None)
