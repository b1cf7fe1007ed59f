"""The parts of plo's docstrings, and their Markdown."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

SECTIONS = ("Idea", "Assumes", "Dispute", "Args", "Returns", "Yields", "Raises", "Source", "Example", "Attributes")
HEAD = re.compile(rf"({'|'.join(SECTIONS)})(?: \([^)]*\))?:(?: +(.*))?$")
ENTRY = re.compile(r"(\w+(?:, \w+)*): +(.*)$")
CODE = re.compile(r"(`[^`\n]+`)")


@dataclass
class Docstring:
    """The parts of a docstring, without indentation.

    Attributes:
        summary: the first paragraph, where a formula follows it; "" where the first paragraph is the formula.
        formula: what is computed, line by line: the first paragraph, or the indented one after a first sentence.
        notes: the paragraphs between the formula and the first section. An indented one is a table or a formula.
        sections: the text of each section, by name.
        args: the description of each hyper-parameter.
    """

    summary: str
    formula: str
    notes: list[str]
    sections: dict[str, str]
    args: dict[str, str]


def read_docstring(target: object) -> Docstring:
    """Read the docstring of a function or class. A section begins with its name and a colon, at the margin."""
    lines = inspect.cleandoc(target.__doc__ or "").splitlines()
    blocks: dict[str, list[str]] = {"": []}
    name = ""
    for line in lines:
        if match := HEAD.match(line):
            name = match[1]
            blocks[name] = [match[2] or ""]
        elif name and line and not line.startswith(" ") and not blocks[name][-1]:
            name = ""  # an ordinary paragraph: after a blank line, at the margin
            blocks[""] += ["", line]
        else:
            blocks[name].append(line)
    paragraphs = [part.strip("\n") for part in re.split(r"\n\s*\n", "\n".join(blocks.pop("")))]
    summary, formula, *notes = ["", *paragraphs]
    alone = len(notes) == 1 and not blocks  # then its indentation counts as the docstring's own
    if notes and (notes[0].startswith("    ") or alone) and "=" not in formula:
        summary, formula, *notes = formula, inspect.cleandoc(f"\n{notes[0]}"), *notes[1:]
    sections = {name: " ".join(" ".join(block).split()) for name, block in blocks.items()}
    return Docstring(
        " ".join(summary.split()), formula, [note for note in notes if note], sections, _args(blocks.get("Args", []))
    )


def _args(lines: list[str]) -> dict[str, str]:
    """Read the entries of a section: each is indented by four columns, and its other lines by more."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        if (match := ENTRY.match(line[4:])) and line.startswith("    "):
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2].strip())
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def markdown(text: str, link: Callable[[str], str] | None = None) -> str:
    """Write prose of a docstring as Markdown: signs of Markdown and HTML are escaped, arXiv numbers are links.

    Args:
        link: returns what a piece of `code` becomes, given without its ticks. By default it stays as it is.
    """
    parts = CODE.split(text)
    plain = [_escaped(part) if i % 2 == 0 else (link(part[1:-1]) if link else part) for i, part in enumerate(parts)]
    return "".join(plain)


def cell(text: str) -> str:
    """Escape Markdown for a cell of a table, where a bar ends the cell even inside `code`."""
    return re.sub(r"(?<!\\)\|", r"\\|", text.replace("\n", " "))


def arxiv(text: str) -> str:
    """Turn arXiv numbers into links."""
    return re.sub(r"((?:arXiv )?)\b(\d{4}\.\d{5})\b", r"[\1\2](https://arxiv.org/abs/\2)", text)


def _escaped(text: str) -> str:
    parts = re.split(r"(\*\*\w[\w ]*\*\*)", text)  # bold
    signs = re.compile(r"([\\*_<>\[\]|$~#])")
    return arxiv("".join(signs.sub(r"\\\1", part) if i % 2 == 0 else part for i, part in enumerate(parts)))
