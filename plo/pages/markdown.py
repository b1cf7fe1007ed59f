"""Markdown of the pages: prose of docstrings, equations, and links between pages."""

import inspect
import re
from collections.abc import Iterable

from plo.docstring import Docstring, markdown
from plo.losses import GENERATORS, LOSSES
from plo.pages.methods import module
from plo.registry import Entry
from plo.scorers import RECIPES, SCORERS


class Page:
    """Markdown helpers for the page of the method `name`, in a `folder` below docs/methods."""

    def __init__(self, name: str, folder: str = ""):
        self.name, self.folder = name, folder
        self.up = "../" if folder else ""  # from the page's folder to docs/methods

    def to(self, name: str, folder: str = "") -> str:
        """Write a link to the page of a method."""
        steps = "" if folder == self.folder else f"{folder}/" if folder else "../"
        return f"[`{name}`]({steps}{name}.md)"

    def list(self, names: Iterable[str], folder: str = "") -> str:
        """Write links to the pages of several methods."""
        return ", ".join(self.to(name, folder) for name in names)

    def prose(self, text: str) -> str:
        """Write text of a docstring as sentences; methods in `code` are linked."""
        text = text[:1].upper() + text[1:] if re.match(r"[a-z]{2,}[ ,:;]|a ", text) else text
        return markdown(text if not text or text.endswith((".", "?")) else f"{text}.", self._link)

    def words(self, text: str) -> str:
        """Write text of a docstring that is no sentence; methods in `code` are linked."""
        return markdown(text, self._link)

    def equation(self, doc: Docstring) -> str:
        """Write the formula of a docstring and the paragraphs that follow it."""
        parts = [code(doc.formula)]
        for note in doc.notes:
            indented = note.startswith("    ")
            parts.append(code(inspect.cleandoc("\n" + note)) if indented else self.words(" ".join(note.split())))
        return "\n\n".join(parts)

    def code(self, names: Iterable[str]) -> str:
        """Write names as code, separated by commas; `-` where there is none."""
        return ", ".join(f"`{name}`" for name in names) or "-"

    def files(self, entries: Iterable[Entry]) -> str:
        """Write links to the source files that define entries."""
        paths = [module(entry).replace(".", "/") + ".py" for entry in entries]
        paths = [re.sub(r"^plo/(losses|evals|leaderboards)/", r"\1/", path) for path in paths]
        return ", ".join(f"[{markdown(path)}](../../{self.up}{path})" for path in paths)

    def _link(self, text: str) -> str:
        """Write code; the name of another method becomes a link to its page, in this page's folder first."""
        places = [("", LOSSES), ("", RECIPES), ("scorers", SCORERS)]
        for folder, registry in sorted(places, key=lambda place: place[0] != self.folder):
            if text in registry and text != self.name and registry[text].name == text:
                return self.to(text, folder)
        if text in GENERATORS and text != self.name:
            return f"[`{text}`]({self.up}generators.md#{text})"
        return f"`{text}`"


def code(text: str, language: str = "text") -> str:
    """Write a block of code."""
    return f"```{language}\n{text}\n```"
