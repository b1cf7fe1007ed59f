"""Judge prompts: files in `templates/`, each with a version, the labels and how the verdict is read.

A file begins with `key: value` lines (version, labels, answer), followed by messages, each after a line `--- role`.
`{prompt}`, `{a}` and `{b}` are filled in at once, so that a text that contains "{a}" stays as it is.
"""

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path

from plo.errors import PloError
from plo.evals.answers import split_thought

FOLDER = Path(__file__).parent / "templates"
_SLOT = re.compile(r"\{(prompt|a|b)\}")
ANSWERS = ("first_token", "last_line", "scores")
SLOPE = 0.3  # log-odds of a better answer per point of score, as in arXiv:2501.17178


class TemplateError(PloError, ValueError):
    """A judge prompt cannot be read. The message names the file, the fault and the remedy."""


@dataclass(frozen=True)
class Template:
    """A judge prompt.

    Attributes:
        labels: labels of the answer shown first and the answer shown second.
        answer: "first_token": the judge answers with the label alone; "last_line": it reasons, and ends with the label on a
            line of its own; "scores": it scores both answers from 0 to 10, in lines such as "score_A: 7".
        messages: (role, text) with the slots {prompt}, {a}, {b}.
        identity: name, version and digest of the text, part of every verdict's key.
    """

    name: str
    version: str
    labels: tuple[str, str]
    answer: str
    messages: tuple[tuple[str, str], ...]
    identity: str

    def fill(self, prompt: str, a: str, b: str) -> list[dict[str, str]]:
        """Return the messages for one question; lone surrogates in the texts become "?"."""
        filling = {"prompt": without_surrogates(prompt), "a": without_surrogates(a), "b": without_surrogates(b)}
        return [
            {"role": role, "content": _SLOT.sub(lambda slot: filling[slot[1]], text)} for role, text in self.messages
        ]

    def read(self, answer: str) -> float | None:
        """Return P(b better) as stated by an answer in words: 0 or 1, or None where it states neither.

        Two scores s from 0 to 10 state p = 1 / (1 + exp(-0.3 (s_b - s_a))), which is a tie if they are equal.
        The answer (first_token), or its last line that is not empty (last_line), must be a label and nothing else but
        white space, markdown bold, brackets and a full stop: "B", "**[B]**", "(B).". A thought before it is ignored.
        """
        answer = split_thought(answer).text
        if self.answer == "scores":
            return _preference(*(_score(label, answer) for label in self.labels))
        lines = answer.strip().splitlines() if self.answer == "last_line" else [answer.strip()]
        label = _bare(lines[-1]) if lines else ""
        return float(self.labels.index(label)) if label in self.labels else None


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
    labels, answer = facts.get("labels", "").split(), facts.get("answer", "first_token")
    messages = tuple(zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True))
    slots = {slot for _, message in messages for slot in _SLOT.findall(message)}
    faults = {
        "a line `version: 1`": "version" not in facts,
        "a line `labels: A B` with two labels": len(labels) != 2 or labels[0] == labels[1],
        f"`answer:` one of {', '.join(ANSWERS)}": answer not in ANSWERS,
        "a message under `--- user`": "user" not in dict(messages),
        "the slots {prompt}, {a} and {b}": slots != {"prompt", "a", "b"},
    }
    if lacking := [what for what, is_fault in faults.items() if is_fault]:
        raise TemplateError(f"The judge prompt {path} lacks {'; '.join(lacking)}.")
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    name, version = path.stem, facts["version"]
    return Template(name, version, (labels[0], labels[1]), answer, messages, f"{name} {version} {digest}")
