"""The 132 words of the pocket language, and the symbol that each of them is for the automaton.

Words that the automaton cannot tell apart are one *symbol*: all subjects, all verbs, all adjectives of one value. What an
adjective is worth may depend on the kind of place, so a word's symbol depends on it, too.
"""

import numpy as np

EOS = "<eos>"
MOODS = (  # three levels, from good to bad
    ["delighted", "cheerful", "happy", "grateful"],
    ["calm", "curious", "tired", "busy"],
    ["angry", "gloomy", "bitter", "bored"],
)
PERSONS = ["anna", "ben", "carla", "david", "emma", "frank"]
PLACES = (  # four kinds: to stay, to eat, to watch, to walk
    ["inn", "hotel", "hostel", "cabin"],
    ["cafe", "bakery", "diner", "bistro"],
    ["concert", "play", "circus", "opera"],
    ["beach", "lake", "park", "trail"],
)
SUBJECTS = (
    ["room", "bed", "pool", "shower", "garden", "lobby"],
    ["soup", "bread", "coffee", "cake", "pasta", "salad"],
    ["music", "stage", "singer", "dancer", "story", "band"],
    ["water", "path", "air", "sand", "forest", "sunset"],
)
VERBS = ["was", "felt", "seemed", "looked"]
INTENSIFIERS = {"very": 1.5, "truly": 1.5, "rather": 0.75, "slightly": 0.5}
NOT = -0.8  # factor of `not`
ADJECTIVES = {
    2: ["wonderful", "superb", "lovely", "splendid", "perfect"],
    1: ["nice", "good", "pleasant", "tidy", "charming", "fine"],
    0: ["plain", "usual", "simple", "average"],
    -1: ["bad", "dull", "poor", "shabby", "dirty", "weak"],
    -2: ["awful", "horrid", "dreadful", "terrible", "vile"],
}
CHANGING = {  # adjectives worth 2 in the first kind of place, -2 in the second, and 0 in the others
    "quiet": (0, 2), "warm": (0, 1), "hot": (1, 3), "sweet": (1, 2),
    "loud": (2, 0), "dark": (2, 3), "cool": (3, 1), "wild": (3, 0),
}  # fmt: skip
PROMISERS = {"owner": 0.9, "host": 0.7, "clerk": 0.3, "manager": 0.1}  # probability that the promise is kept
GIFTS = ["wine", "towels", "flowers", "tickets", "chocolate", "maps"]
KEPT = 3.0  # reward of `it came`; `it never came` costs as much
DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
SINGLE = [
    "the",
    ".",
    "!",
    "and",
    "but",
    "not",
    "promised",
    "it",
    "came",
    "never",
    "we",
    "went",
    "on",
]  # each a symbol of its own

WORDS: list[str] = [
    EOS, *SINGLE, ":", *(w for level in MOODS for w in level), *PERSONS, *(w for kind in PLACES for w in kind),
    *(w for kind in SUBJECTS for w in kind), *VERBS, *INTENSIFIERS, *(w for words in ADJECTIVES.values() for w in words),
    *CHANGING, *PROMISERS, *GIFTS, *DAYS,
]  # fmt: skip
ID = {word: number for number, word in enumerate(WORDS)}

# Symbols: an adjective has another one when it was used before in the response, as it then pays nothing.
ADJECTIVE = {value: f"adjective {value}" for value in ADJECTIVES}
REPEATED = {value: f"repeated {value}" for value in ADJECTIVES if value}  # one that is worth 0 pays nothing anyway
SYMBOLS: list[str] = [
    EOS, *SINGLE, "subject", "verb", *INTENSIFIERS, *ADJECTIVE.values(), *REPEATED.values(), *PROMISERS, "gift", "day",
]  # fmt: skip
SYMBOL = {symbol: number for number, symbol in enumerate(SYMBOLS)}
KINDS = len(PLACES)


def adjectives(value: int, kind: int) -> list[str]:
    """Return the adjectives that are worth `value` in a kind of place."""
    changed = [w for w, (good, bad) in CHANGING.items() if value == (2 if kind == good else -2 if kind == bad else 0)]
    return ADJECTIVES[value] + changed


def members(symbol: str, kind: int) -> list[str]:
    """Return the words that are a symbol in a kind of place; the probability of the symbol is spread evenly over them."""
    groups: dict[str, list[str]] = {"subject": SUBJECTS[kind], "verb": VERBS, "gift": GIFTS, "day": DAYS}
    groups |= {name: adjectives(value, kind) for names in (ADJECTIVE, REPEATED) for value, name in names.items()}
    return groups.get(symbol, [symbol])


SIZES = {value: len(adjectives(value, 0)) for value in ADJECTIVES}  # equal in all kinds of place
SYMBOL_OF = np.full((KINDS, len(WORDS)), -1)  # symbol of a word in a kind of place, first use; -1: of prompts alone
REPEATED_OF = np.arange(len(SYMBOLS))  # symbol of a word that was used before
SPREAD = np.zeros((KINDS, len(SYMBOLS), len(WORDS)))  # probability of each word given its symbol
for _symbol in SYMBOLS:
    for _kind in range(KINDS):
        _ids = [ID[word] for word in members(_symbol, _kind)]
        SPREAD[_kind, SYMBOL[_symbol], _ids] = 1 / len(_ids)
        if _symbol not in REPEATED.values():
            SYMBOL_OF[_kind, _ids] = SYMBOL[_symbol]
for _value, _name in REPEATED.items():
    REPEATED_OF[SYMBOL[ADJECTIVE[_value]]] = SYMBOL[_name]
