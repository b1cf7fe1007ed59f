"""The automaton of the pocket language: its states, and the odds and rewards of what may follow.

    response   1 to 5 clauses, then EOS
    clause     the SUBJECT VERB [not] [INTENSIFIER] ADJECTIVE END | the PROMISER promised GIFT . | it [never] came END
               | we went on DAY .
    END        . | ! | and | but

A state is a place in a clause, a mood, and what the response has used so far: the number of clauses, what `and` or `but`
lets expect, the promise, and how many adjectives of each value. Which adjectives they were need not be known: those of one
value are equally likely, so that only their number decides what the future is worth.
"""

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from plo.pocket import words
from plo.pocket.automaton import Automaton, Ints
from plo.pocket.words import ADJECTIVE, EOS, INTENSIFIERS, KEPT, NOT, PROMISERS, REPEATED, SIZES, SYMBOL

CLAUSES = 5
GOOD = np.array([0.68, 0.5, 0.32])  # probability of praise by mood
SHIFT = np.array([0.0, 0.15, -0.15])  # of it, after no conjunction, `good and` or `bad but`, and the reverse
NEUTRAL, STRONG = 0.12, 0.45  # shares of adjectives worth 0, and of those worth 2 among the others
NEGATED, INTENSIFIED = 0.15, {"very": 0.12, "truly": 0.08, "rather": 0.08, "slightly": 0.07}
STOP = [0.0, 0.1, 0.15, 0.3, 0.45, 1.0]  # probability of EOS after so many clauses
OUTING, PROMISE, TOLD = 0.1, 0.12, 0.5  # odds of `we`, of a promiser after `the`, of `it` while a promise is pending
EXCLAIMED = {1: 0.5, 0: 0.15, -1: 0.08}  # odds of `!` after praise, a neutral clause, blame
AND, BUT = 0.15, 0.1

# The promise: not made, pending (by promiser), or told.
NONE, PENDING, DONE = 0, range(1, len(PROMISERS) + 1), len(PROMISERS) + 1
TRACKED = list(REPEATED)  # values whose adjectives are counted
# Place in a clause and its order: after END and `.` the clause is over, and `start` begins the next one.
PLACES = {
    "end": 0, "dot": 0, "start": 1, "the": 2, "we": 2, "it": 2, "subject": 3, "promiser": 3, "went": 3, "never": 3,
    "verb": 4, "promised": 4, "on": 4, "not": 5, **dict.fromkeys(INTENSIFIERS, 6),
    **dict.fromkeys((f"not {name}" for name in INTENSIFIERS), 6), "over": 9,
}  # fmt: skip


def used_before() -> list[tuple[int, tuple[int, ...]]]:
    """Return (clause, adjectives used of each tracked value) of every state between clauses, in order."""
    counts = list(product(range(CLAUSES), repeat=len(TRACKED)))
    started = [(c, k) for c in range(CLAUSES) for k in counts if sum(k) <= c]
    return [*started, (CLAUSES, (0,) * len(TRACKED))]  # after the last clause nothing matters any more


@dataclass
class Grammar:
    """The states and transitions of the pocket language.

    Attributes:
        shape: (moods, used, tendencies, promises): numbers of values of the parts of a state. In `end`, the tendency is
            the clause's own: 0 praise, 1 neutral, 2 blame.
        automaton: the automaton over `plo.pocket.words.SYMBOLS`.
    """

    shape: tuple[int, int, int, int] = field(init=False)
    automaton: Automaton = field(init=False)

    def __post_init__(self):
        self.used = used_before()
        self.shape = (len(GOOD), len(self.used), len(SHIFT), DONE + 1)
        self._ids = np.arange(np.prod(self.shape)).reshape(self.shape)
        self._offsets = {place: number * self._ids.size for number, place in enumerate(PLACES)}
        self._clause = np.array([clause for clause, _ in self.used])
        self._parts: list[tuple[Any, ...]] = []
        self._sentences()
        self._asides()
        source, symbol, target, probability, reward = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        layer = np.concatenate(
            [np.broadcast_to(10 * self._clause[:, None, None] + n, self.shape).ravel() for n in PLACES.values()]
        )
        layer[self._offsets["over"] :] = 10 * (CLAUSES + 2)
        self.automaton = Automaton(
            layer, source=source, symbol=symbol, target=target, probability=probability, reward=reward
        )

    def start(self, mood: int | Ints) -> Any:
        """Return the state after a prompt of a mood: 0 good, 1 mixed, 2 bad."""
        return self._offsets["start"] + self._ids[mood, 0, 0, NONE]

    @property
    def over(self) -> int:
        """The state after EOS."""
        return self._offsets["over"]

    def _add(self, place, symbol, to, odds, *, reward=0.0, used=None, tendency=None, promise=None) -> None:
        """Add a transition of all states of a place.

        Args:
            odds, reward: arrays that broadcast to `shape`; where the odds are 0 there is no transition.
            used, tendency, promise: parts of the next state that change: arrays that broadcast to `shape`.
        """
        if place not in ("end", "dot", "start"):  # within a sixth clause, which no response reaches
            odds = odds * (self._clause[:, None, None] < CLAUSES)
        moods, old, tendencies, promises = np.indices(self.shape, sparse=True)
        parts = (
            moods,
            old if used is None else used,
            tendencies if tendency is None else tendency,
            promises if promise is None else promise,
        )
        target = self.over if to == "over" else self._offsets[to] + self._ids[parts]
        values = (self._offsets[place] + self._ids, SYMBOL[symbol], target, odds, reward)
        self._parts.append(tuple(np.broadcast_to(value, self.shape).ravel() for value in values))

    def _after(self, value: int | None = None) -> Ints:
        """Return the number of `used` after the clause, by the present one; `value`: a new adjective's."""
        places = {entry: number for number, entry in enumerate(self.used)}
        found = []
        for clause, counts in self.used:
            new = tuple(n + (v == value) for v, n in zip(TRACKED, counts, strict=True))
            found.append(places.get((clause + 1, new), len(self.used) - 1))
        return np.array(found)[:, None, None]

    def _sentences(self) -> None:
        _, _, tendency, promise = np.indices(self.shape, sparse=True)
        clause = self._clause[:, None, None]
        pending = np.isin(promise, PENDING)
        free = np.where(tendency == 0, 1 - np.array(STOP)[clause] * ~pending, 1.0) * (clause < CLAUSES)
        told = np.where(pending, np.where(clause == CLAUSES - 1, 1.0, TOLD), 0.0)
        self._add("start", EOS, "over", np.where(tendency == 0, np.array(STOP)[clause] * ~pending, clause == CLAUSES))
        self._add("start", "it", "it", free * told)
        self._add("start", "we", "we", free * (1 - told) * OUTING)
        self._add("start", "the", "the", free * (1 - told) * (1 - OUTING))
        may_promise = PROMISE * ((promise == NONE) & (clause < CLAUSES - 1))
        for number, name in zip(PENDING, PROMISERS, strict=True):
            self._add("the", name, "promiser", may_promise / len(PROMISERS), promise=number)
        self._add("the", "subject", "subject", 1 - may_promise)
        self._add("subject", "verb", "verb", 1.0)
        self._add("verb", "not", "not", NEGATED)
        plain = 1 - sum(INTENSIFIED.values())
        for place, share, sign in (("verb", 1 - NEGATED, 1.0), ("not", 1.0, NOT)):
            self._adjective(place, share * plain, sign)
            for name, odds in INTENSIFIED.items():
                to = name if sign == 1 else f"not {name}"
                self._add(place, name, to, share * odds)
                self._adjective(to, 1.0, sign * INTENSIFIERS[name])
        self._ends()

    def _adjective(self, place: str, share: float, factor: float) -> None:
        """Add the adjectives that may follow in a place; their values are multiplied by `factor`."""
        good = np.clip(GOOD[:, None, None, None] + SHIFT[:, None], 0, 1)
        for value in words.ADJECTIVES:
            of_sign = good if value > 0 else 1 - good
            odds = share * (
                NEUTRAL if not value else (1 - NEUTRAL) * of_sign * (STRONG if abs(value) == 2 else 1 - STRONG)
            )
            worth = value * factor
            own = 1 - np.sign(worth).astype(int)  # 0 praise, 1 neutral, 2 blame
            before = np.zeros(len(self.used))
            if value:
                before = np.array([counts[TRACKED.index(value)] for _, counts in self.used]) / SIZES[value]
                repeated = before[:, None, None]
                self._add(place, REPEATED[value], "end", odds * repeated, used=self._after(), tendency=own)
            fresh = 1 - before[:, None, None]
            self._add(place, ADJECTIVE[value], "end", odds * fresh, reward=worth, used=self._after(value), tendency=own)

    def _ends(self) -> None:
        """Add what ends a clause. The state after `!` is that after `.`."""
        own = np.indices(self.shape, sparse=True)[2]
        more = self._clause[:, None, None] < CLAUSES
        exclaimed = np.array([EXCLAIMED[sign] for sign in (1, 0, -1)])[own]
        expected = np.array([1, 1, 2])[own]  # by `and`: more of the same
        self._add("end", "!", "start", exclaimed, tendency=0)
        self._add("end", "and", "start", AND * more, tendency=expected)
        self._add("end", "but", "start", BUT * more, tendency=3 - expected)
        self._add("end", ".", "start", 1 - exclaimed - (AND + BUT) * more, tendency=0)
        self._add("dot", ".", "start", 1.0, tendency=0)

    def _asides(self) -> None:
        """Add promises and what became of them, and `we went on monday .`, which is worth nothing."""
        promise = np.indices(self.shape, sparse=True)[3]
        kept = np.array([0.5, *PROMISERS.values(), 0.5])[promise]
        self._add("promiser", "promised", "promised", 1.0)
        self._add("promised", "gift", "dot", 1.0, used=self._after())
        self._add("it", "came", "end", kept, reward=KEPT, used=self._after(), tendency=0, promise=DONE)
        self._add("it", "never", "never", 1 - kept)
        self._add("never", "came", "end", 1.0, reward=-KEPT, used=self._after(), tendency=2, promise=DONE)
        self._add("we", "went", "went", 1.0)
        self._add("went", "on", "on", 1.0)
        self._add("on", "day", "dot", 1.0, used=self._after())
