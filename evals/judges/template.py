"""Judge prompts: files in `templates/`, each with a version, the labels and how the verdict is read.

A file begins with `key: value` lines (version, labels, values, answer, tokens), followed by messages, each after a line
`--- role`. `{prompt}`, `{a}` and `{b}` are filled in at once, so that a text that contains "{a}" stays as it is.
"""

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plo.errors import PloError
from plo.evals.answers import split_thought

FOLDER = Path(__file__).parent / "templates"
_SLOT = re.compile(r"\{(prompt|a|b)\}")
ANSWERS = ("first_token", "last_line", "brackets", "rating", "scores")
_MARKED = re.compile(r"\[\[([^\[\]]+)\]\]"), re.compile(r"\[([^\[\]]+)\]")
_RATED = re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]")
LOWEST, HIGHEST = 1, 10  # of a rating
SLOPE = 0.3  # log-odds of a better answer per point of score, as in arXiv:2501.17178


class TemplateError(PloError, ValueError):
    """A judge prompt cannot be read. The message names the file, the fault and the remedy."""


@dataclass(frozen=True)
class Template:
    """A judge prompt.

    Attributes:
        labels: verdicts that a judge can state; of two, the labels of the answer shown first and the answer shown second.
        answer: "first_token": the judge answers with the label alone; "last_line": it reasons, and ends with the label on a
            line of its own; "brackets": it reasons, and writes the label in double brackets, [[A>B]]; "rating": it rates the
            answer b alone, with a number from 1 to 10 in double brackets, [[7]], and `a` is a reference answer or empty;
            "scores": it scores both answers from 0 to 10, in lines such as "score_A: 7".
        messages: (role, text) with the slots {prompt}, {a}, {b}.
        identity: name, version and digest of the text, part of every verdict's key.
        values: P(b better) that each label states.
        tokens: length of an answer that the prompt needs room for; None: 1 for "first_token", else 512.
    """

    name: str
    version: str
    labels: tuple[str, ...]
    answer: str
    messages: tuple[tuple[str, str], ...]
    identity: str
    values: tuple[float, ...] = (0.0, 1.0)
    tokens: int | None = None

    @property
    def rates(self) -> bool:
        """True if the judge rates the answer b alone instead of comparing it with a."""
        return self.answer == "rating"

    @property
    def endings(self) -> list[tuple[str, float]]:
        """Texts that end an answer, each with the P(b better) that it states: for judges that compare their probabilities."""
        if self.rates:
            return [(f"[[{n}]]", of_rating(n)) for n in range(LOWEST, HIGHEST + 1)]
        if self.answer == "brackets":  # one label for each value
            first = {value: label for label, value in reversed(list(zip(self.labels, self.values, strict=True)))}
            return [(f"[[{label}]]", value) for value, label in sorted(first.items())]
        return list(zip(self.labels, self.values, strict=True))

    def fill(self, prompt: str, a: str, b: str) -> list[dict[str, str]]:
        """Return the messages for one question; lone surrogates in the texts become "?"."""
        filling = {"prompt": without_surrogates(prompt), "a": without_surrogates(a), "b": without_surrogates(b)}
        return [
            {"role": role, "content": _SLOT.sub(lambda slot: filling[slot[1]], text)} for role, text in self.messages
        ]

    def read(self, answer: str) -> float | None:
        """Return P(b better) as stated by an answer in words, or None where it states none.

        Two scores s from 0 to 10 state p = 1 / (1 + exp(-0.3 (s_b - s_a))), which is a tie if they are equal.
        The answer (first_token), or its last line that is not empty (last_line), must be a label and nothing else but
        white space, markdown bold, brackets and a full stop: "B", "**[B]**", "(B).". With "brackets" it is the last label
        in double brackets or, without any, in single ones. With "rating" it is the first number r so marked, as
        (r - 1) / 9; a number outside 1 to 10 states nothing. A thought before the answer is ignored.
        """
        answer = split_thought(answer).text
        if self.answer == "scores":
            return _preference(*(_score(label, answer) for label in self.labels))
        if self.rates:
            found = _first_list(marked.findall(answer) for marked in _RATED)
            rating = float(found[0]) if found else math.nan
            return of_rating(rating) if LOWEST <= rating <= HIGHEST else None
        if self.answer == "brackets":
            values = dict(zip(map(str.upper, self.labels), self.values, strict=True))
            stated = (
                [label for found in marked.findall(answer.upper()) if (label := found.strip()) in values]
                for marked in _MARKED
            )
            found = _first_list(stated)
            return values[found[-1]] if found else None
        lines = answer.strip().splitlines() if self.answer == "last_line" else [answer.strip()]
        label = _bare(lines[-1]) if lines else ""
        return self.values[self.labels.index(label)] if label in self.labels else None


def of_rating(rating: float) -> float:
    """Return a rating from 1 to 10 as a share, (rating - 1) / 9, which takes the place of P(b better) in a verdict."""
    return (rating - LOWEST) / (HIGHEST - LOWEST)


def as_rating(p: Any) -> Any:
    """Return the rating that `of_rating` made p of; also for arrays."""
    return LOWEST + (HIGHEST - LOWEST) * p


def _score(label: str, answer: str) -> float | None:
    """Return the score of a label, "score_A: 7", "Score A = 7/10" or in JSON; None unless there is one from 0 to 10."""
    found = re.findall(rf"score[ _]?{re.escape(label)}\W{{1,6}}?(-?\d+(?:\.\d+)?)", answer, re.IGNORECASE)
    return float(found[0]) if len(set(found)) == 1 and 0 <= float(found[0]) <= 10 else None


def _preference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else 1 / (1 + math.exp(SLOPE * (a - b)))


def without_surrogates(text: str) -> str:
    """Return the text with "?" for every lone surrogate, which can be neither sent nor tokenised."""
    return text.encode("utf-8", "replace").decode()


def _bare(line: str) -> str:
    for _ in range(4):
        line = line.strip().removesuffix(".")
        for left, right in (("**", "**"), ("[", "]"), ("(", ")")):
            if len(line) > len(left + right) and line.startswith(left) and line.endswith(right):
                line = line[len(left) : -len(right)]
    return line


def get_template(name: str | Path | Template) -> Template:
    """Return a built-in judge prompt by name, or one of the user's by its file.

    Raises:
        TemplateError: there is no such name or file, or it lacks version, labels, a message or a slot.
    """
    if isinstance(name, Template):
        return name
    path = FOLDER / f"{name}.txt"
    if not path.is_file():
        path = Path(name).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.txt")))
        raise TemplateError(f"The judge prompt {str(name)!r} cannot be read ({error}). Built in: {known}.") from None
    return _parse(path, text)


def _parse(path: Path, text: str) -> Template:
    head, *parts = re.split(r"^--- (system|user|assistant)\n", text, flags=re.MULTILINE)
    facts = dict(line.split(":", 1) for line in head.splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    labels, answer = tuple(facts.get("labels", "").split()), facts.get("answer", "first_token")
    values, rates = _numbers(facts.get("values", "0 1")), answer == "rating"
    tokens = _numbers(facts.get("tokens", "512"))
    messages = tuple(zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True))
    slots = {slot for _, message in messages for slot in _SLOT.findall(message)}
    faults = {
        "a line `version: 1`": "version" not in facts,
        f"a line `labels: A B` with two{'' if answer == 'first_token' else ' or more'} labels": not rates
        and (len(labels) < 2 or len(set(labels)) < len(labels) or (answer == "first_token" and len(labels) > 2)),
        "a line `values: 0 1` with a number from 0 to 1 for each label": not rates
        and (len(values) != len(labels) or not all(0 <= value <= 1 for value in values)),
        "a line `tokens: 512` with a number": len(tokens) != 1 or not tokens[0] >= 1,
        f"`answer:` one of {', '.join(ANSWERS)}": answer not in ANSWERS,
        "a message under `--- user`": "user" not in dict(messages),
        "the slots {prompt}, {a} and {b}": not {"prompt", "b"} | (set() if rates else {"a"}) <= slots,
    }
    if lacking := [what for what, is_fault in faults.items() if is_fault]:
        raise TemplateError(f"The judge prompt {path} lacks {'; '.join(lacking)}.")
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    name, version = path.stem, facts["version"]
    room = int(tokens[0]) if "tokens" in facts else None
    return Template(name, version, labels, answer, messages, f"{name} {version} {digest}", values, room)


def _numbers(text: str) -> tuple[float, ...]:
    """Return the numbers of a line; NaN for a word that is none."""
    numbers = []
    for word in text.split():
        try:
            numbers.append(float(word))
        except ValueError:
            numbers.append(math.nan)
    return tuple(numbers)


def _first_list(lists: Iterable[list[str]]) -> list[str]:
    """Return the first list that is not empty, or an empty one."""
    return next(filter(None, lists), [])
