"""Rules that make preference pairs of scored answers, and label noise: both are views, which sample and ask nothing anew."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from plo.errors import PloError
from plo.paths import text_digest

RULES = ("best/worst", "best/random", "margin(q)")
_MARGIN = re.compile(r"margin\((0?\.\d+|0)\)")


class RuleError(PloError, ValueError):
    """A text names no rule of pairs."""


@dataclass(frozen=True)
class Rule:
    """Rule of pairs.

    Attributes:
        name: as it was given.
        random: whether the rejected answer is drawn from all but the best, rather than the worst.
        quantile: share of the pairs, those of the least margins, to leave out.
    """

    name: str
    random: bool = False
    quantile: float = 0.0


def read_rule(text: str) -> Rule:
    """Read "best/worst", "best/random" or "margin(q)" with 0 <= q < 1.

    Raises:
        RuleError: the text is none of them.

    Example:
        >>> read_rule("margin(0.5)").quantile
        0.5
    """
    if found := _MARGIN.fullmatch(text.strip()):
        return Rule(text.strip(), quantile=float(found[1]))
    if text not in RULES[:2]:
        raise RuleError(f"rule={text!r} is no rule of pairs: write best/worst, best/random or margin(0.5).")
    return Rule(text, random=text == "best/random")


def choose_pairs(
    scores: Sequence[Sequence[float]], texts: Sequence[Sequence[object]], rule: Rule, keys: Sequence[str]
) -> list[tuple[int, int, int]]:
    """Return (prompt, chosen, rejected), numbers of answers, for each prompt that gives a pair.

    Answers without a score (NaN) are left out, and so is a prompt whose answers have equal scores or texts. Among equal
    scores the first answer is the best, and the last the worst. `margin(q)` keeps the pairs whose margin is at least the
    q-quantile of the margins of all prompts: ceil((1 - q) n) of n, those of equal margin in the order of the prompts.

    Args:
        scores: scores of the answers to each prompt, higher is better.
        texts: the answers, of which equal ones make no pair.
        rule: see `read_rule`.
        keys: text by which the random answer of each prompt is drawn.

    Example:
        >>> choose_pairs([[1.0, 3.0, 2.0]], [["a", "b", "c"]], read_rule("best/worst"), ["p"])
        [(0, 1, 0)]
    """
    found: list[tuple[int, int, int]] = []
    for prompt, (own, said, key) in enumerate(zip(scores, texts, keys, strict=True)):
        known = [number for number, score in enumerate(own) if not math.isnan(score)]
        if not known:
            continue
        best = max(known, key=lambda number: (own[number], -number))
        worse = [n for n in known if own[n] < own[best] and said[n] != said[best]]
        if not worse:
            continue
        if rule.random:
            rejected = worse[int(fraction(key) * len(worse))]
        else:
            rejected = min(worse, key=lambda number: (own[number], -number))
        found.append((prompt, best, rejected))
    margins = {prompt: scores[prompt][a] - scores[prompt][b] for prompt, a, b in found}
    kept = math.ceil(round((1 - rule.quantile) * len(found), 9))
    widest = set(sorted(margins, key=lambda prompt: (-margins[prompt], prompt))[:kept])
    return [one for one in found if one[0] in widest]


def is_turned(share: float, seed: int, pair: str) -> bool:
    """Return whether label noise turns a pair round, by seed and pair alone: what .1 turns is turned by .2 too."""
    return fraction(f"flip {seed} {pair}") < share


def fraction(text: str) -> float:
    """Return a number in [0, 1) that is a hash of a text."""
    return int(text_digest(text)[:13], 16) / 16**13
