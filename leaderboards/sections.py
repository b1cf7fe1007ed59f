"""Results of evaluations of level "model": a section of the leaderboard for each evaluation and its settings."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd

from plo.leaderboards.judged import judge_lines, noise_of
from plo.leaderboards.metrics import section_metric
from plo.metric import ADJUSTED, Metric
from plo.statistics import JudgeNoise
from plo.statistics.intervals import StatisticsError
from plo.statistics.length import length_adjusted, rate_range
from plo.tracking import Finding, RecordedCell, TrackingError, allowed_name

IDENTITY = ("lr", "beta", "peft")
JUDGED = "*win_rate*"
SLOPE_SDS = (0.1, 0.2, 0.4, 0.8)  # of which the notes give the range of length-adjusted rates


@dataclass
class Section:
    """An evaluation of level "model" with the settings that its numbers share: code, options, judge, opponent.

    Attributes:
        title: the evaluation's name, followed by the settings that distinguish the section from others of that
            evaluation. It begins every metric's full name, `<title>.<metric>`.
        params: options that differ from their defaults, judge, against.
        digest_without_judge: digest of the settings without the judge: sections with the same digest differ in their
            judge alone.
        notes: notes recorded with the results.
        judges: {"judge", "version", "prompt", "given"} of each judge, and for a measured judge "card" (lines) and
            "informative"; "measured" has lines on its noise and on what its verdicts took.
        descriptions: {metric's short name: its recorded description}; empty for results of an earlier version.
        values: {metric's full name: {run id of a cell: value}}.
        items: {metric's full name: {run id of a cell: its values by prompt}}, where items were recorded.
        noise: {metric's full name: noise of its judge}, where every question was asked several times.
        curves: {metric's full name: {run id of a cell: {share of the training: value}}}, where the evaluation has them.
    """

    evaluation: str
    title: str
    settings_digest: str
    params: dict[str, str]
    digest_without_judge: str = ""
    notes: list[str] = field(default_factory=list)
    judges: list[dict[str, Any]] = field(default_factory=list)
    descriptions: dict[str, Metric] = field(default_factory=dict)
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    items: dict[str, dict[str, pd.Series]] = field(default_factory=dict)
    noise: dict[str, JudgeNoise] = field(default_factory=dict)
    curves: dict[str, dict[str, dict[float, float]]] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """Full names of the section's metrics."""
        return list(self.values)

    def short_name(self, name: str) -> str:
        """Return the metric's name without the title."""
        return name.removeprefix(f"{self.title}.")

    def describe(self, name: str) -> Metric:
        """Return how the metric of that full name is read and shown."""
        return section_metric(self.evaluation, self.short_name(name), self.descriptions)

    def is_judged(self, name: str) -> bool:
        """Return whether the metric is computed from a judge's verdicts."""
        return bool(self.judges) and fnmatchcase(self.short_name(name), JUDGED)

    def is_hidden(self, name: str) -> bool:
        """Return whether the metric comes from a judge whose agreement with gold labels may be chance."""
        return self.is_judged(name) and any(judge.get("informative") is False for judge in self.judges)

    @property
    def trusted(self) -> bool:
        """True if every judge of the section, if any, agrees with gold labels beyond chance."""
        return all(judge.get("informative") or judge["judge"].startswith("gold:") for judge in self.judges)

    def keep_metrics(self, names: Collection[str]) -> None:
        """Drop all metrics but those in `names`, and put them in that order."""
        self.values = {name: self.values[name] for name in names if name in self.values}


def build_sections(
    cells: Sequence[RecordedCell],
    checks: Sequence[Mapping[str, Any]],
    notes: list[str],
    wanted: Collection[str] | None = None,
) -> list[Section]:
    """Return one section per evaluation and settings that a cell was evaluated with, in order of title.

    Args:
        checks: cards of judges, oldest first (`Tracker.judge_checks`). Of several cards of a judge, that on most pairs counts.
        notes: receives what could not be read.
        wanted: full names of metrics; sections without any of them are not read. None: all.
    """
    groups: dict[tuple[str, str], dict[str, Finding]] = {}
    variants = _variants(cells)
    for cell in cells:
        for finding in cell.findings:
            groups.setdefault((finding.evaluation, finding.settings), {})[cell.run_id] = finding
    params = {key: next(iter(found.values())).params for key, found in groups.items()}
    sections = []
    for (evaluation, settings), found in groups.items():
        title = _title(evaluation, settings, params)
        if wanted is None or any(name.startswith(f"{title}.") for name in wanted):
            section = Section(evaluation, title, settings, params[evaluation, settings])
            try:
                _fill(section, found, checks, variants)
                sections.append(section)
            except TrackingError as error:
                notes.append(str(error))
    return sorted(sections, key=lambda section: section.title)


def _variants(cells: Sequence[RecordedCell]) -> dict[str, str]:
    """Return {run id: what the cell shares with those that differ in their seed alone}."""
    names = {cell.run_id: cell.tags.get("plo.variant", cell.name) for cell in cells}
    settings = {cell.run_id: ", ".join(f"{key}={cell.params.get(key)}" for key in IDENTITY) for cell in cells}
    of_name: dict[str, set[str]] = {}
    for run, name in names.items():
        of_name.setdefault(name, set()).add(settings[run])
    return {run: f"{name} [{settings[run]}]" if len(of_name[name]) > 1 else name for run, name in names.items()}


def _fill(
    section: Section, found: Mapping[str, Finding], checks: Sequence[Mapping[str, Any]], variants: Mapping[str, str]
) -> None:
    """Read the recorded results of all cells into the section; `variants` has the variant of each run."""
    tables, lengths, notes, judges, usages, repeated = {}, {}, {}, {}, [], []
    for run, finding in found.items():
        tables[run], about = finding.items.rename(columns=allowed_name), finding.about  # names as metrics are recorded
        usages += [about["usage"]] if about.get("usage") else []
        repeated += [finding] if about.get("repeats", 1) > 1 else []
        notes |= dict.fromkeys(about["notes"])
        judges |= {json.dumps(judge): judge for judge in about["judges"]}
        lengths |= {allowed_name(name): [*map(allowed_name, columns)] for name, columns in about["lengths"].items()}
        section.digest_without_judge = about["but_judge"]
        section.descriptions |= {allowed_name(one["name"]): Metric.from_dict(one) for one in about.get("described", [])}
        for step, metrics in (curves := about.get("curves", {})).items():
            share = int(step) / max(map(int, curves)) if len(curves) > 1 else 1.0
            for metric, value in metrics.items():
                of_runs = section.curves.setdefault(f"{section.title}.{allowed_name(metric)}", {})
                of_runs.setdefault(run, {})[share] = value
        by_prompt = tables[run].groupby("prompt_id").mean(numeric_only=True)
        for metric, value in sorted(finding.metrics.items()):
            name = f"{section.title}.{metric}"
            section.values.setdefault(name, {})[run] = value
            if metric in by_prompt:
                section.items.setdefault(name, {})[run] = by_prompt[metric].astype(float).dropna()
    section.notes = list(notes)
    noise = noise_of(repeated)
    section.noise = {f"{section.title}.{metric}": one for metric, one in noise.items()}
    rates = {metric: one for metric, one in noise.items() if fnmatchcase(metric, JUDGED)}
    measured = judge_lines(rates, max(table["prompt_id"].nunique() for table in tables.values()), usages)
    section.judges = [judge | _card(judge, checks) | {"measured": measured} for judge in judges.values()]
    for metric, (own, opponent) in lengths.items():
        _adjust(section, metric, tables, {metric: "win", own: "length", opponent: "base_length"}, variants)


def _adjust(
    section: Section,
    metric: str,
    tables: Mapping[str, pd.DataFrame],
    columns: Mapping[str, str],
    variants: Mapping[str, str],
) -> None:
    """Add the length-adjusted rate after a win rate: one fit over all cells, with one length slope for a variant's seeds.

    A single cell gets none: its slope would be estimated from nothing but its own verdicts.
    """
    frames = [
        table[["prompt_id", *columns]]
        .rename(columns=columns)
        .astype({"win": float})
        .assign(model=run, variant=variants[run])
        for run, table in tables.items()
        if {"prompt_id", *columns} <= set(table)
    ]
    frame = pd.concat(frames).dropna() if frames else pd.DataFrame({"model": []})
    if frame["model"].nunique() < 2:
        return
    try:
        fit = length_adjusted(frame)
        ranges = rate_range(frame, SLOPE_SDS, fit.prompt_sd).groupby(variants.__getitem__).mean()
    except StatisticsError as error:
        section.notes.append(f"{ADJUSTED}{metric} is not available: {error}")
        return
    name, raw = f"{section.title}.{ADJUSTED}{metric}", list(section.values)
    section.values[name] = {str(run): float(rate) for run, rate in fit.rates["rate"].items()}
    section.items[name] = {str(run): fit.items[run] for run in fit.items}
    place = raw.index(f"{section.title}.{metric}") + 1
    section.keep_metrics([*raw[:place], name, *raw[place:]])
    section.notes.append(
        f"{ADJUSTED}{metric}: one fit over {len(fit.rates)} cells of {frame['variant'].nunique()} variants; standard deviations in logits: {fit.prompt_sd:.2f} of "
        f"prompts (estimated), {fit.slope_sd:g} of the variants' length slopes (chosen). It is not AlpacaEval's "
        f"length-controlled rate, and it changes when cells are added."
    )
    listed = "; ".join(f"{variant} {low:.3f} to {high:.3f}" for variant, low, high in ranges.itertuples())
    section.notes.append(
        f"{ADJUSTED}{metric} by the slopes' standard deviation, {SLOPE_SDS[0]:g} to {SLOPE_SDS[-1]:g}: {listed}. Where the "
        f"range is wide, length and quality cannot be told apart."
    )


def _title(evaluation: str, settings: str, params: Mapping[tuple[str, str], Mapping[str, str]]) -> str:
    """Return the evaluation's name, with what distinguishes these settings from its others in brackets."""
    others = {other: found for (name, other), found in params.items() if name == evaluation}
    own = others.pop(settings)
    differing = {
        key for other in others.values() for key in own.keys() | other.keys() if own.get(key) != other.get(key)
    }
    parts = [f"{key}={own.get(key, 'default')}" for key in sorted(differing)]
    if any(own == other for other in others.values()):  # other code, or another content of the same file
        parts.append(f"settings {settings[:8]}")
    return f"{evaluation} [{', '.join(parts)}]" if parts else evaluation


def _card(judge: Mapping[str, Any], checks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    same = [check for check in checks if (check["judge"], check["version"]) == (judge["judge"], judge["version"])]
    best = max(reversed(same), key=lambda check: check["pairs"], default=None)
    return {"card": best["card"], "informative": best["informative"]} if best else {}


def find_primary_metric(name: str, known: Collection[str], sections: Sequence[Section]) -> str | None:
    """Return the full name of a metric as an experiment names it: "reward", or "alpaca.win_rate" in any of its sections.

    None: nothing recorded it, or several judges gave it.
    """
    if name in known:
        return name
    of_sections = [(section, full) for section in sections for full in section.metrics]
    found = [full for section, full in of_sections if f"{section.evaluation}.{section.short_name(full)}" == name]
    return found[0] if len(found) == 1 else None


def choose_primary_metric(
    metrics: Sequence[str], sections: Sequence[Section], descriptions: Mapping[str, Metric]
) -> str | None:
    """Return the metric that a verdict is about.

    It is the reward, if recorded; else the first win rate, of a judge with an informative card if possible, and never of
    an uninformative one; else the first metric of samples with a direction.
    """
    if "reward" in metrics:
        return "reward"
    rates = [
        name for section in sorted(sections, key=lambda section: not section.trusted) for name in section.metrics
        if section.short_name(name).startswith("win_rate")
        and not section.is_hidden(name) and section.describe(name).better
    ]  # fmt: skip
    of_sections = {name for section in sections for name in section.metrics}
    described = ((name, descriptions[name]) for name in metrics if name not in of_sections)
    others = (name for name, metric in described if metric.better and metric.table == "reward")
    return next(iter([*rates, *others]), None)
