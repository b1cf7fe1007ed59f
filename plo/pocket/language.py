"""`Language`: prompts, responses drawn from the reference, and the reward, value and advantage of every token of a response."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from plo.errors import PloError
from plo.pocket.automaton import Automaton, Floats, Ints
from plo.pocket.grammar import Grammar
from plo.pocket.words import EOS, ID, MOODS, PERSONS, PLACES, REPEATED_OF, SPREAD, SYMBOL_OF, WORDS

FORBIDDEN = -1.0  # reward of a token that the grammar forbids: it leaves the state, and EOS ends the response
LONGEST = 5 * 8 + 1  # tokens of the longest response of the reference, EOS included
_MOOD = {word: level for level, mood in enumerate(MOODS) for word in mood}
_KIND = {word: kind for kind, places in enumerate(PLACES) for word in places}
_PAYS_ONCE = np.arange(len(REPEATED_OF)) != REPEATED_OF
_IS_REPEATED = np.isin(np.arange(len(REPEATED_OF)), REPEATED_OF[_PAYS_ONCE])


class PocketError(PloError, ValueError):
    """A text is not of the pocket language, or a number of the pocket task cannot be computed from what is given."""


@dataclass(frozen=True)
class Prompt:
    """A prompt of the pocket task, as the automaton reads it.

    Attributes:
        text: six words, such as "happy anna on the beach :".
        mood: 0 good, 1 mixed, 2 bad.
        kind: kind of place: 0 to stay, 1 to eat, 2 to watch, 3 to walk.
    """

    text: str
    mood: int
    kind: int

    @classmethod
    def read(cls, text: str) -> "Prompt":
        """Read a prompt.

        Raises:
            PocketError: the text is not a prompt of the pocket task.
        """
        match text.split():
            case [mood, person, "on", "the", place, ":"] if mood in _MOOD and person in PERSONS and place in _KIND:
                return cls(text, _MOOD[mood], _KIND[place])
            case _:
                raise PocketError(
                    f"{text!r} is no prompt of the pocket task. Write it as 'happy anna on the beach :', as "
                    "`plo.pocket.prompts` does."
                )


def prompts() -> list[Prompt]:
    """Return all 1,152 prompts, `{mood} {person} on the {place} :`."""
    places = [place for kind in PLACES for place in kind]
    return [Prompt.read(f"{mood} {person} on the {place} :") for mood, person, place in product(_MOOD, PERSONS, places)]


def ids_of(text: str, *, finished: bool) -> list[int]:
    """Return the token ids of a response; `finished` adds EOS.

    Raises:
        PocketError: a word is not of the language.
    """
    try:
        return [ID[word] for word in text.split()] + [ID[EOS]] * finished
    except KeyError as error:
        raise PocketError(
            f"{error.args[0]!r} is none of the {len(WORDS)} words of the pocket task, in {text[:60]!r}."
        ) from None


@dataclass(frozen=True)
class Walk:
    """Path of responses through the automaton. Arrays are (responses, tokens), left-aligned and padded.

    Attributes:
        ids: token ids; 0 off the mask.
        mask: True on tokens, EOS included.
        state: state before each token.
        target: state after each token.
        transition: number of the automaton's transition; -1 where the grammar forbids the token.
        reward: own reward of each token; -1 where it is forbidden, 0 off the mask.
    """

    ids: Ints
    mask: np.ndarray
    state: Ints
    target: Ints
    transition: Ints
    reward: Floats

    @property
    def forbidden(self) -> np.ndarray:
        """True on tokens that the grammar forbids."""
        return self.mask & (self.transition < 0)

    def advantages(self, values: Floats) -> Floats:
        """Return (responses, tokens) r + V(s') - V(s) for values (states,) of the automaton; 0 off the mask."""
        return np.where(self.mask, self.reward + values[self.target] - values[self.state], 0.0)


class Language:
    """The pocket language: the automaton, with words for its symbols.

    Attributes:
        grammar: states and transitions.
        automaton: the process of symbols.
    """

    def __init__(self):
        self.grammar = Grammar()
        self.automaton: Automaton = self.grammar.automaton

    @functools.cached_property
    def values(self) -> Floats:
        """V (states,) under the reference, which is the automaton itself."""
        return self.automaton.values()

    @functools.lru_cache(maxsize=8)  # noqa: B019 (there is one language)
    def soft_values(self, beta: float) -> Floats:
        """Return V* (states,) of the optimum of E[R] - beta KL; see `Automaton.soft_values`."""
        return self.automaton.soft_values(beta)

    def start(self, prompts: Iterable[Prompt]) -> Ints:
        """Return (prompts,) the states in which responses begin."""
        return self.grammar.start(np.array([prompt.mood for prompt in prompts]))

    def walk(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> Walk:
        """Follow responses through the automaton, whatever their tokens are.

        Args:
            prompts: (responses,) the prompt of each.
            responses: token ids, with EOS if it was reached.
        """
        count, longest = len(responses), max([1, *map(len, responses)])
        ids, mask = np.zeros((count, longest), dtype=int), np.zeros((count, longest), dtype=bool)
        for row, response in enumerate(responses):
            ids[row, : len(response)], mask[row, : len(response)] = response, True
        kinds, state = np.array([prompt.kind for prompt in prompts]), self.start(prompts)
        used = np.zeros((count, len(WORDS)), dtype=bool)
        rows, steps = np.arange(count), []
        for token, there in zip(ids.T, mask.T, strict=True):
            symbol = SYMBOL_OF[kinds, token]
            symbol = np.where(used[rows, token], REPEATED_OF[symbol], symbol)
            transition = np.where(there & (symbol >= 0), self.automaton.transition[state, symbol], -1)
            legal = transition >= 0
            used[rows[legal], token[legal]] = True
            target = np.where(legal, self.automaton.target[transition], state)
            target = np.where(there & ~legal & (token == ID[EOS]), self.grammar.over, target)
            reward = np.where(legal, self.automaton.reward[transition], np.where(there, FORBIDDEN, 0.0))
            steps.append((state, target, transition, reward))
            state = target
        state, target, transition, reward = (np.stack(part, axis=1) for part in zip(*steps, strict=True))
        return Walk(ids, mask, state, target, transition, reward)

    def sample(self, prompts: Sequence[Prompt], seed: int | Sequence[int]) -> list[list[int]]:
        """Draw a response from the reference for each prompt, as token ids with EOS.

        Args:
            seed: seed of the draw; equal seeds and prompts give equal responses.
        """
        noise = np.random.default_rng(seed)
        kinds, state = np.array([prompt.kind for prompt in prompts]), self.start(prompts)
        used = np.zeros((len(prompts), len(WORDS)), dtype=bool)
        responses: list[list[int]] = [[] for _ in prompts]
        rows = np.arange(len(prompts))
        while len(rows):
            transition = self.automaton.draw(state[rows], noise.random(len(rows)))
            symbol = self.automaton.symbol[transition]
            possible = SPREAD[kinds[rows], symbol] > 0
            known = used[rows]
            possible &= ~(_PAYS_ONCE[symbol, None] & known) & ~(_IS_REPEATED[symbol, None] & ~known)
            word = np.where(possible, noise.random(possible.shape), -1).argmax(1)
            used[rows, word] = True
            for row, token in zip(rows, word, strict=True):
                responses[row].append(int(token))
            state[rows] = self.automaton.target[transition]
            rows = rows[word != ID[EOS]]
        return responses

    def next_words(self, prompts: Sequence[Prompt], walk: Walk) -> Floats:
        """Return (responses, tokens, words) the reference's probabilities of the next word before each token."""
        transition = self.automaton.transition[walk.state]
        odds = np.where(transition >= 0, self.automaton.probability[transition], 0.0)
        return odds @ SPREAD[[prompt.kind for prompt in prompts]]


@functools.cache
def language() -> Language:
    """Return the pocket language, built once per process (0.2 s)."""
    return Language()
