"""Direct comparison of the variants of a recorded comparison: a judge sees the texts of two of them together."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from plo.config import ConfigError
from plo.environment import environment
from plo.evals.judges import JudgeSession
from plo.experiment.evaluations import judge_record
from plo.identity import sha256
from plo.metric import Metric
from plo.statistics import bradley_terry, estimate, pseudo_values, schedule
from plo.tracking import Comparison, RecordedCell, Tracker

EVALUATION, VERSION = "head_to_head", 1
GROUPS = 35  # of prompts, for the jackknife
METRICS = [
    Metric("elo", "Elo", "rating by Bradley-Terry from games against the other variants; mean 0", 0, "↑", EVALUATION),
    Metric(
        "win_rate", "win rate", "share of games won against the other variants, draws half", 3, "↑", EVALUATION, (0, 1)
    ),
    Metric("games", "games", "number of games of a cell, each asked in both orders", 0, "", EVALUATION),
    Metric(
        "consistency", "consistency", "share of games with the same winner in both orders", 3, "", EVALUATION, (0, 1)
    ),
    Metric("unreadable", "unreadable", "share of games with an unreadable verdict", 3, "↓", EVALUATION, (0, 1)),
]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rated:
    """A variant's result: Elo rating with its interval for new prompts and new seeds, and its share of wins."""

    variant: str
    elo: float
    low: float
    high: float
    win_rate: float
    games: int
    seeds: int


def head_to_head(
    comparison: Comparison,
    tracker: Tracker,
    judging: JudgeSession,
    *,
    suite: str | None = None,
    template: str = "instruction",
    games: int | None = None,
) -> list[Rated]:
    """Let every two variants meet on common prompts, in both orders, record the result with each cell, and return the ratings.

    Cells meet those of the same seed alone, on the same prompt and the same number of the sample. Nothing is sampled: the
    texts are those that the cells recorded. With a limit, the games are the first ones of `plo.statistics.schedule`, so that
    all pairs meet equally often, and a larger limit adds games to those that were asked.

    Args:
        suite: evaluation whose texts are compared ("hh"); None: the samples of the last evaluation point.
        games: maximum number of games, over all seeds; None: all.

    Raises:
        ConfigError: fewer than two variants have texts on common prompts.
    """
    texts = _texts(comparison, suite)
    table, possible = _games(texts, games)
    played = f"{len(table)} of {possible} games between {len({_variant(cell) for cell, _ in texts})} variants"
    questions = table.rename(columns={"text_1": "a", "text_2": "b"})
    judging.begin()
    log.info(f"Head to head: {played}.")
    table = table.join(
        judging.verdicts(questions[["prompt", "a", "b"]], template)[["p_ab", "p_ba", "win", "consistent"]]
    )
    judging.enforce_read()
    ratings = {str(seed): _rate(group) for seed, group in table[table["win"].notna()].groupby("seed")}
    judge = judging.judge(template)
    settings = [EVALUATION, VERSION, judge.name, judge.version, suite, games, sorted(cell.key for cell, _ in texts)]
    if judging.repeats > 1:
        settings.append(judging.repeats)
    but_judge = sha256(settings[:2] + settings[4:7])
    notes = [
        f"Head to head: {played} on the texts of {suite or 'the last evaluation point'}; cells of the same seed meet, each game "
        f"in both orders.",
        *judging.remarks,
    ]
    about = {"notes": notes, "lengths": {}, "but_judge": but_judge, "judges": [judge_record(judging, template)]}
    about |= {"described": [metric.to_dict() for metric in METRICS], "templates": {}}
    params = {"judge": judging.name} | ({"repeats": str(judging.repeats)} if judging.repeats > 1 else {})
    params |= ({"suite": suite} if suite else {}) | ({"games": str(games)} if games else {})
    for place, (cell, _) in enumerate(texts):
        own, usage = _own(table, cell), {"usage": judging.usage} if place == 0 else {}  # of all games together
        metrics, items = _found(own, ratings.get(_seed(cell)), _variant(cell))
        tags = {"plo.of": cell.key, "plo.evaluation": EVALUATION, "plo.settings": sha256(settings), **environment()}
        name = f"{EVALUATION} of {cell.name}"
        run = tracker.start_evaluation(comparison.run_id, sha256([cell.key, sha256(settings)]), name, tags, params)
        if run is not None:
            run.table(own, f"{EVALUATION}_games.json")
            run.finding(EVALUATION, metrics, items, about | usage)
    return _summary(table, ratings)


def _texts(comparison: Comparison, suite: str | None) -> list[tuple[RecordedCell, pd.DataFrame]]:
    """Return the texts of each finished cell: prompt_id, sample, prompt, text."""
    found: list[tuple[RecordedCell, pd.DataFrame]] = []
    taken: set[tuple[str, str]] = set()
    for cell in comparison.cells():
        if cell.status != "FINISHED" or (frame := _recorded(cell, suite)) is None:
            continue
        if (key := (_variant(cell), _seed(cell))) in taken:
            raise ConfigError(
                f"The comparison {comparison.name} has two cells of {key[0]} with seed {key[1]}, of different settings: name the "
                f"beginning of the key of one comparison."
            )
        taken.add(key)
        once = frame.drop_duplicates(["prompt_id", "sample"])
        found.append((cell, once[["prompt_id", "sample", "prompt", "text"]]))
    if len({_variant(cell) for cell, _ in found}) < 2:
        what = (
            f"texts of {suite}: run plo eval {comparison.name} --suite {suite} first" if suite else "recorded samples"
        )
        raise ConfigError(f"Fewer than two variants of {comparison.name} have {what}.")
    return found


def _recorded(cell: RecordedCell, suite: str | None) -> pd.DataFrame | None:
    if suite is None:
        return cell.table("samples.json") if cell.has_table("samples.json") else None
    finding = next((finding for finding in cell.findings if finding.evaluation == suite), None)
    if finding is None:
        return None
    frame = finding.table(f"{suite}_verdicts.json")
    return frame[frame["temperature"] == frame["temperature"].iloc[0]]


def _games(texts: Sequence[tuple[RecordedCell, pd.DataFrame]], limit: int | None) -> tuple[pd.DataFrame, int]:
    """Return the games (seed, prompt_id, sample, prompt, variant and text of both players), and how many are possible."""
    by_seed: dict[str, dict[str, pd.DataFrame]] = {}
    for cell, frame in texts:
        by_seed.setdefault(_seed(cell), {})[_variant(cell)] = frame.set_index(["prompt_id", "sample"])
    rows: list[list[dict[str, Any]]] = []
    total = 0
    seeds = {seed: players for seed, players in by_seed.items() if len(players) > 1}
    share = None if limit is None else -(-limit // max(len(seeds), 1))
    for seed, players in sorted(seeds.items()):
        frames, names = list(players.values()), list(players)
        common = [place for place in frames[0].index if all(place in frame.index for frame in frames[1:])]
        common.sort(key=lambda place: hashlib.sha256(repr((str(place[0]), int(place[1]))).encode()).hexdigest())
        total += len(common) * len(names) * (len(names) - 1) // 2
        rows.append([])
        for block, i, j in islice(schedule(len(names), len(common)), share):
            prompt_id, sample = place = common[block]
            row = {"seed": seed, "prompt_id": prompt_id, "sample": sample, "prompt": frames[0].loc[place, "prompt"]}
            row |= {"variant_1": names[i], "variant_2": names[j]}
            rows[-1].append(row | {"text_1": frames[i].loc[place, "text"], "text_2": frames[j].loc[place, "text"]})
    flat = _in_turn(rows)[:limit]
    if not flat:
        raise ConfigError("No two variants of one seed have texts on a common prompt, so that none can be compared.")
    return pd.DataFrame(flat), total


def _in_turn(groups: Sequence[Sequence[Any]]) -> list[Any]:
    """Return the elements of all groups in turn: the first of each, then the second of each, ..."""
    return [group[place] for place in range(max(map(len, groups), default=0)) for group in groups if place < len(group)]


@dataclass(frozen=True)
class _Ratings:
    """Ratings of the variants of one seed, and pseudo-values [groups, variants] whose means they are."""

    names: list[str]
    elo: np.ndarray
    values: np.ndarray


def _rate(games: pd.DataFrame) -> _Ratings:
    names = sorted({*games["variant_1"], *games["variant_2"]})
    first, second = (games[column].map(names.index).to_numpy(dtype=np.intp) for column in ("variant_1", "variant_2"))
    wins = 1 - games["win"].to_numpy(dtype=float)  # of the first one
    prompts, owner = np.unique(games["prompt_id"].astype(str), return_inverse=True)

    def ratings(kept: Any) -> np.ndarray:
        chosen = np.isin(owner, kept)
        return bradley_terry(first[chosen], second[chosen], wins[chosen], len(names))

    elo = ratings(np.arange(len(prompts)))
    if len(prompts) < 2:
        return _Ratings(names, elo, elo[None])
    values = pseudo_values(ratings, len(prompts), groups=min(GROUPS, len(prompts)))
    return _Ratings(names, elo, values - values.mean(0) + elo)


def _own(table: pd.DataFrame, cell: RecordedCell) -> pd.DataFrame:
    """Return the games of a cell: opponent, both texts, and its wins."""
    games = table[table["seed"] == _seed(cell)]
    first = games[games["variant_1"] == _variant(cell)].assign(won=lambda g: 1 - g["win"])
    second = games[games["variant_2"] == _variant(cell)].assign(won=lambda g: g["win"])
    first = first.rename(columns={"variant_2": "opponent", "text_1": "text", "text_2": "opponent_text"})
    second = second.rename(columns={"variant_1": "opponent", "text_2": "text", "text_1": "opponent_text"})
    columns = ["prompt_id", "sample", "prompt", "opponent", "text", "opponent_text", "won", "consistent"]
    return pd.concat([first[columns], second[columns]]).reset_index(drop=True)


def _found(own: pd.DataFrame, ratings: _Ratings | None, variant: str) -> tuple[dict[str, float], pd.DataFrame]:
    by_prompt = own.assign(unreadable=own["won"].isna().astype(float)).groupby("prompt_id")
    items = by_prompt[["won", "consistent", "unreadable"]].mean().reset_index()
    items = items.rename(columns={"won": "win_rate", "consistent": "consistency"})
    metrics = {name: float(items[name].mean()) for name in ("win_rate", "consistency", "unreadable")}
    metrics["games"] = float(len(own))
    if ratings is not None and variant in ratings.names:
        place = ratings.names.index(variant)
        groups = [f"group {number}" for number in range(len(ratings.values))]
        items = pd.concat(
            [items, pd.DataFrame({"prompt_id": groups, "elo": ratings.values[:, place]})], ignore_index=True
        )
        metrics["elo"] = float(ratings.elo[place])
    items["prompt_id"] = items["prompt_id"].astype(str)
    return metrics, items


def _summary(table: pd.DataFrame, ratings: Mapping[str, _Ratings]) -> list[Rated]:
    rated = []
    for variant in sorted({*table["variant_1"], *table["variant_2"]}):
        columns = {s: r.values[:, r.names.index(variant)] for s, r in ratings.items() if variant in r.names}
        shortest = min(map(len, columns.values()), default=0)
        found = estimate(pd.DataFrame({seed: values[:shortest] for seed, values in columns.items()}))
        wins = pd.concat(
            [1 - table.loc[table["variant_1"] == variant, "win"], table.loc[table["variant_2"] == variant, "win"]]
        )
        elo = float(
            np.mean([r.elo[r.names.index(variant)] for r in ratings.values() if variant in r.names] or [np.nan])
        )
        rated.append(Rated(variant, elo, found.low, found.high, float(wins.mean()), len(wins), len(columns)))
    return sorted(rated, key=lambda one: -one.elo)


def _variant(cell: RecordedCell) -> str:
    return cell.tags.get("plo.variant", cell.name)


def _seed(cell: RecordedCell) -> str:
    return cell.tags.get("plo.seed", "0")
