"""Text on a terminal: what a user, a file, a model or a server wrote is shown as it is, and never interpreted.

A terminal interprets control characters (it clears the screen, renames the window, hides a line), and rich interprets `[red]`.
"""

import logging
import unicodedata
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment
from rich.text import Text

LAYOUT = "\n\t"
OUTCOMES = {"done": "green", "failed": "red", "note": "yellow"}  # first words of log records, and their colours
LEVELS = {logging.DEBUG: "dim", logging.WARNING: "yellow", logging.ERROR: "red"}  # colours of other records
# Marks that reverse the reading direction, and line ends that a terminal does not show.
INVISIBLE = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A)), "\u2028", "\u2029"}


def plain(text: object) -> str:
    r"""Replace control characters by escapes, ESC by `\x1b`; keep line ends and tabs.

    Example:
        >>> plain("\x1b[2Jhi\n")
        '\\x1b[2Jhi\n'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(_escape(c) if c not in LAYOUT and _is_control(c) else c for c in text)


def line(*parts: str | tuple[str, str]) -> Text:
    """Join texts, each a string or with a style as in `("done", "green")`; nothing in them is markup."""
    return Text.assemble(*(plain(part) if isinstance(part, str) else (plain(part[0]), part[1]) for part in parts))


def say(console: Console, *parts: str | tuple[str, str], style: str = "") -> None:
    """Print `line(*parts)` without line breaks of its own. All text that plo did not write itself is printed by it."""
    console.print(line(*parts), style=style or None, highlight=False, soft_wrap=True)


class Terminal(Console):
    """A console that replaces control characters by escapes everywhere: in lines, tables and progress bars.

    Strings are not markup; `say` and `rich.text.Text` set styles.
    """

    def __init__(self, **settings: Any):
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **settings})

    def render(self, *arguments: Any, **settings: Any) -> Iterable[Segment]:
        for segment in super().render(*arguments, **settings):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)


class TerminalHandler(logging.Handler):
    """Prints log records on a console, each as its bare message.

    A first word in `OUTCOMES` has that colour; any other record has the colour of its level.
    """

    def __init__(self, console: Console):
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            word = text.split(" ", 1)[0]
            if word in OUTCOMES:
                say(self.console, (word, OUTCOMES[word]), text.removeprefix(word))
            else:
                say(self.console, text, style=LEVELS.get(record.levelno, ""))
        except Exception:
            self.handleError(record)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or character in INVISIBLE


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()
