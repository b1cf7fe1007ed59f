r"""A leaderboard as a LaTeX table with the rules of booktabs, to be read with `\input`; texts in it are inert."""

import re
import unicodedata

from plo.leaderboards.board import Leaderboard
from plo.leaderboards.columns import first_columns
from plo.leaderboards.headline import design_lines, headline
from plo.leaderboards.page.text import label

MINUS = r"\(-\)"
LONGEST = 160  # characters of a text
NAME = 40  # characters of a variant's name, which loses its middle
WORD = 60  # characters without a space, which loses its middle too: LaTeX breaks no line there
_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}",
    "[": "{[}", "]": "{]}", "*": "{*}",
    "±": r"\(\pm\)", "↑": r"\(\uparrow\)", "↓": r"\(\downarrow\)", "Δ": r"\(\Delta\)", "⏎": " ", "…": r"\ldots{}",
}  # fmt: skip


def to_latex(board: Leaderboard) -> str:
    r"""Return the first table of a leaderboard as LaTeX, with what won above it and the design of the test below.

    The preamble of the document needs `\usepackage{booktabs}` and `\usepackage{textcomp}`.
    """
    columns = [("variant", lambda row: label(board.title(row), NAME)), *first_columns(board)]
    head = " & ".join(escape(title) for title, _ in columns)
    body = [" & ".join(escape(text(row)) for _, text in columns) for row in board.rows]
    notes = [*design_lines(board), "Mean and difference with 95% interval for new prompts and new seeds."]
    return "\n".join([
        r"% plo leaderboard --latex; needs \usepackage{booktabs} and \usepackage{textcomp}",
        r"\begin{table}",
        rf"\caption{{{escape(headline(board), 2000)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
        *(rf"{line} \\" for line in body),
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip\footnotesize " + " ".join(escape(note, 1000) for note in notes),
        r"\end{table}",
        "",
    ])  # fmt: skip


def escape(text: object, limit: int = LONGEST) -> str:
    r"""Return any text as one line of inert LaTeX, which every engine typesets.

    The text is cut to `limit` characters, its words to 60. What is special to LaTeX, starts an optional argument or joins into a ligature is
    a command or stands in braces. Characters beyond Latin-1, which pdfLaTeX refuses, are written as U+05D0, and control
    and other invisible characters as "?".

    Example:
        >>> escape(r"\input{x} 50%")
        '\\textbackslash{}input\\{x\\} 50\\%'
    """
    text = re.sub(rf"\S{{{WORD + 1},}}", lambda word: label(word[0], WORD), str(text))
    more = f" ... ({len(text) - limit} more characters)" if len(text) > limit else ""
    kept = unicodedata.normalize("NFC", re.sub(r"\s+", " ", text[:limit])).strip()
    inert = re.sub("-(?=-)", "-{}", "".join(map(_inert, kept)))
    return (
        re.sub(r"(?<![\w}-])-(?=\d)", lambda _: MINUS, re.sub(r"\{\[\}-(?=\d)", lambda _: "{[}" + MINUS, inert)) + more
    )


def _inert(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    if not character.isprintable() or unicodedata.category(character) in ("Cf", "Mn"):
        return "?"
    return character if ord(character) < 0x100 else f"U+{ord(character):04X} "
