"""A judge's card: how reliable its verdicts are, measured on pairs whose better answer is known."""

import hashlib
import math
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from plo.evals.judges.judge import Judge, JudgeError, JudgeSpec, Question
from plo.evals.judges.rows import stable_hash
from plo.evals.judges.session import JudgeSession, probabilities, win
from plo.evals.judges.template import Template, get_template
from plo.statistics.rankings import Ranking, rank_agreement

RESAMPLES = 2000
Z = 1.959963984540054  # 97.5% quantile of the normal distribution


@dataclass(frozen=True)
class ValueWithInterval:
    """A number with its 95% interval; NaN where it is undefined."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        return "-" if math.isnan(self.value) else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class JudgeCard:
    """Quality of a judge on pairs with gold labels.

    A *verdict* is the judge's answer in one order: a (p < 1/2), b (p > 1/2) or a tie (p = 1/2), which counts 1/2
    in all shares. Every pair has two verdicts, one per order; unreadable ones are left out.
    With several repeats every verdict counts, and the figures of a pair are means over its repeats.
    Intervals are over pairs, with the two orders of a pair as one draw: Wilson's for shares, with the number of pairs
    as n (a pair's mean varies at most like a coin, so they are conservative), the percentile bootstrap for the others.

    Attributes:
        judge, version, template: name and version (a digest) of the judge, and its prompt.
        pairs: number of pairs.
        source: name of the file with the pairs; "" if unknown.
        accuracy: share of verdicts for the gold answer: mean over pairs of the mean over readable orders.
        combined: share of pairs whose mean of p over both orders favours the gold answer.
        kappa: Cohen's kappa of verdicts (a, b or tie) with gold, both orders pooled.
        consistency: share of pairs with the same verdict in both orders.
        position_bias: share of verdicts for the answer shown first, minus 1/2; over pairs readable in both orders.
        length_bias: among pairs of different length in characters, the share of verdicts for the longer answer minus the
            share of gold labels for it.
        retest: share of pairs with the same verdict when asked again, a shown first, a mean over pairs of repeats; NaN if
            nothing was asked again.
        unreadable: number of unreadable verdicts, of 2 x pairs x repeats (for a pointwise judge: of pairs).
        unreadable_share: mean over pairs of the share of unreadable verdicts.
        rankings: agreement of the judge's ratings of the models with those by the gold labels, by number of pairs; empty where
            the pairs do not name their models.
    """

    judge: str
    version: str
    template: str
    pairs: int
    source: str
    accuracy: ValueWithInterval
    combined: ValueWithInterval
    kappa: ValueWithInterval
    consistency: ValueWithInterval
    position_bias: ValueWithInterval
    length_bias: ValueWithInterval
    retest: ValueWithInterval
    unreadable: int
    unreadable_share: ValueWithInterval
    rankings: tuple[Ranking, ...] = ()

    @property
    def informative(self) -> bool:
        """True if the interval of the accuracy is above chance, 1/2. A judge that is reliably wrong is not informative."""
        return self.accuracy.low > 0.5

    def to_dict(self) -> dict[str, Any]:
        """Return the card as JSON values: figures as {value, low, high}, null for NaN."""
        return {name: _plain(value) for name, value in (*vars(self).items(), ("informative", self.informative))}

    def lines(self) -> list[str]:
        """Return the card as lines of text."""
        figures = {
            name.replace("_", " "): value for name, value in vars(self).items() if isinstance(value, ValueWithInterval)
        }
        verdict = "informative" if self.informative else "uninformative judge: its accuracy is not above chance"
        return [
            f"measured on {self.pairs} pairs of {self.source or 'an unnamed table'}",
            f"judge {self.judge}  prompt {self.template}  ({verdict})",
            *(f"  {name:<17}{figure}" for name, figure in figures.items()),
            *(f"  {one}" for one in self.rankings),
        ]


def make_judge_card(
    judge: JudgeSession | JudgeSpec,
    pairs: pd.DataFrame,
    template: str | Template = "instruction",
    *,
    retest: int = 0,
    source: str = "",
) -> JudgeCard:
    """Measure a judge on pairs with gold labels.

    Args:
        judge: a `JudgeSession`, or a specification of a judge.
        pairs: columns prompt, a, b (texts), gold (1: b is better, 0: a is), and optionally model_a, model_b; see `read_gold`.
        retest: number of pairs to ask again (the first ones by hash), for a verdict of their own, which is kept; a judge that
            always repeats its verdict is not asked. With the judge's option `repeats` all pairs are asked again anyway.
        source: origin of the pairs, for the card.

    Raises:
        JudgeError: a column or all pairs are missing, gold has other values, or the judge cannot be asked.
    """
    judging = judge if isinstance(judge, JudgeSession) else JudgeSession(judge)
    if missing := [column for column in ("prompt", "a", "b", "gold") if column not in pairs]:
        raise JudgeError(f"The pairs lack the columns {', '.join(missing)}: give prompt, a, b and gold.")
    if pairs.empty or not pairs.gold.isin([0, 1]).all():
        raise JudgeError("The pairs need at least one row, and gold 1 (b is better) or 0 (a is better) in each.")
    asked = judging.judge(template)
    found = [judging.verdicts(pairs, template) for _ in judging.each_repeat()]
    p_ab, p_ba, p, consistent = (
        np.stack([one[name] for one in found], 1) for name in ("p_ab", "p_ba", "p", "consistent")
    )
    gold = pairs.gold.to_numpy(float)
    says = win(np.hstack([p_ab, p_ba]))  # (pairs, orders x repeats): 1 b, 0 a, 1/2 tie
    unread = np.isnan(says)
    first = _mean((1 - win(p_ab) + win(p_ba)) / 2)
    longer = np.sign(pairs.b.str.len().to_numpy() - pairs.a.str.len().to_numpy())
    by_length = np.where(longer == 0, np.nan, longer * (_mean(says) - gold))
    return JudgeCard(
        judge=asked.name,
        version=hashlib.sha256(asked.version.encode()).hexdigest()[:12],
        template=get_template(template).identity,
        pairs=len(pairs),
        source=source,
        accuracy=wilson(_mean(1 - np.abs(says - gold[:, None]))),
        combined=wilson(_mean(1 - np.abs(win(p) - gold[:, None]))),
        kappa=_kappa(says, gold),
        consistency=wilson(_mean(consistent)),
        position_bias=_bootstrapped(first - 0.5),
        length_bias=_bootstrapped(by_length),
        retest=_retest(judging, asked, pairs, template, retest),
        unreadable=int(unread[:, : len(found) * (1 if asked.pointwise else 2)].sum()),
        unreadable_share=wilson(unread.mean(axis=1)),
        rankings=_rankings(pairs, gold, _mean(np.stack([one["win"] for one in found], 1))),
    )


def _rankings(pairs: pd.DataFrame, gold: np.ndarray, judged: np.ndarray) -> tuple[Ranking, ...]:
    """Return the agreement of ratings, if the pairs name three models or more."""
    if not {"model_a", "model_b"} <= set(pairs):
        return ()
    numbers, names = pd.factorize(pd.concat([pairs["model_a"], pairs["model_b"]]))
    if len(names) < 3:
        return ()
    first, second = numbers.reshape(2, -1)
    return tuple(rank_agreement(first, second, gold, judged))


def wilson(values: np.ndarray) -> ValueWithInterval:
    """Return the mean of values in [0, 1], NaN left out, with Wilson's score interval."""
    values = values[~np.isnan(values)]
    n = len(values)
    if not n:
        return ValueWithInterval()
    mean = float(values.mean())
    centre = (mean + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
    return ValueWithInterval(mean, max(centre - half, 0.0), min(centre + half, 1.0))


def _bootstrapped(values: np.ndarray) -> ValueWithInterval:
    """Return the mean over pairs, NaN left out, with its percentile bootstrap interval."""
    values = values[~np.isnan(values)]
    if not len(values):
        return ValueWithInterval()
    return _figure(float(values.mean()), _weights(len(values)) @ values / len(values))


def _kappa(says: np.ndarray, gold: np.ndarray) -> ValueWithInterval:
    """Return (p_observed - p_chance) / (1 - p_chance) from the table of verdicts (a, tie, b) by gold (a, b)."""
    tables = np.zeros((len(gold), 3, 2))  # one per pair, for resampling
    for order in says.T:
        read = np.flatnonzero(~np.isnan(order))
        tables[read, (2 * order[read]).astype(int), gold[read].astype(int)] += 1
    drawn = (_weights(len(gold)) @ tables.reshape(len(gold), 6)).reshape(-1, 3, 2)
    return _figure(float(_kappa_of(tables.sum(0))), _kappa_of(drawn))


def _kappa_of(table: np.ndarray) -> np.ndarray:
    """Return kappa of tables (..., 3, 2)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = table / table.sum(axis=(-2, -1), keepdims=True)
        observed = share[..., 0, 0] + share[..., 2, 1]
        verdicts, golds = share.sum(-1), share.sum(-2)
        chance = verdicts[..., 0] * golds[..., 0] + verdicts[..., 2] * golds[..., 1]
        return (observed - chance) / (1 - chance)


def _weights(n: int) -> np.ndarray:
    """Return how often each pair is drawn, (resamples, n), the same for all figures and on every run."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float)


def _figure(value: float, resampled: np.ndarray) -> ValueWithInterval:
    resampled = resampled[~np.isnan(resampled)]  # a draw with one class has no kappa
    low, high = np.quantile(resampled, [0.025, 0.975]) if len(resampled) else (math.nan, math.nan)
    return ValueWithInterval(value, float(low), float(high))


def _retest(
    judging: JudgeSession, judge: Judge, pairs: pd.DataFrame, template: str | Template, count: int
) -> ValueWithInterval:
    times = max(judging.repeats, 2)
    count = len(pairs) if judging.repeats > 1 else count
    if not count or not judge.repeatable:
        return ValueWithInterval()
    questions = [Question(*row) for row in pairs[["prompt", "a", "b"]].itertuples(index=False)]
    picked = sorted(questions, key=lambda question: stable_hash(repr((question.prompt, question.a, question.b))))[
        :count
    ]
    asked = judging.ask([replace(question, repeat=k) for k in range(times) for question in picked], template)
    says = win(probabilities(asked)).reshape(times, len(picked))
    both = [np.where(np.isnan(a + b), np.nan, a == b) for a, b in combinations(says, 2)]
    return wilson(pd.DataFrame(both).mean().to_numpy())


def _mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the readable columns; NaN where there is none."""
    return pd.DataFrame(values).mean(axis=1).to_numpy()


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [vars(one) for one in value]
    if isinstance(value, ValueWithInterval):
        return {name: _plain(number) for name, number in vars(value).items()}
    return None if isinstance(value, float) and math.isnan(value) else value
