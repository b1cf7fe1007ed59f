"""Hostile names of losses, variants, judges and prompts stay text: in LaTeX, Markdown, CSV and on a terminal."""

import csv
import io
import json
import re
import shutil
import subprocess

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from plo.leaderboards import read, to_csv, to_json, to_markdown, write
from plo.leaderboards.latex import escape, to_latex
from plo.leaderboards.terminal import to_terminal
from plo.terminal import Terminal
from plo.tracking import Tracker

SHARED = {"plo.data": "data", "plo.model": "model", "plo.evaluation": "evaluation"}
HOSTILE = {
    "script": "<script>alert(1)</script>",
    "image": "<img src=x onerror=alert(1)>",
    "table": "</td></tr></table> | a | b |\n| --- |",
    "right to left": "abc\u202e\u2066 \u05d0\u05d1 \u200f",
    "long": "x" * 100_000,
    "ansi": "\x1b[2J\x1b]0;title\x07\x9b31m",
    "nul": "a\x00b\x08\x7f",
    "template": "{{7*7}} ${7*7} #{7*7}",
    "input": r"\input{/etc/passwd}",
    "write18": r"\immediate\write18{touch /tmp/x} \end{tabular} $x$ %",
    "row": "[1pt] * \\\\[1pt] & a ^^5cinput ?` --",
    "formula": '=cmd|" /C calc"!A0',
    "plus": "+1+cmd|' /C calc'!A0",
    "at": "\t@SUM(1+1)*cmd|' /C calc'!A0",
    "wide": "\uff1dcmd()",
    "markdown": "![x](http://evil/x.png) [a](javascript:alert(1)) `code` # h",
}


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A board in which each hostile text is the name of a variant, of its judge, and of all else that has a name."""
    path = tmp_path_factory.mktemp("store") / "plo.db"
    tracker, every = Tracker(path), " ".join(HOSTILE.values())
    settings = {"primary": "reward", "baseline": "base", "margin": 0.1}
    parent = tracker.comparison(every, "key", settings, cells={"never": f"never {every}"})
    for number, text in enumerate(["base", *HOSTILE.values()]):
        tracker.judge_check(text, "v1", {"card": [text], "pairs": 3, "informative": True})
        for seed in (0, 1):
            key, own = f"{number}/{seed}", {"plo.loss": text, "plo.variant": text, "plo.seed": seed}
            pairs = {
                "round": 1,
                "policy": text,
                "oracle": text,
                "rule": text,
                "k": 2,
                "temperature": 1,
                "prompts": 3,
                "pairs": 3,
            }
            own |= {"plo.pairs": json.dumps(pairs)}
            cell = tracker.start_cell(parent, key, f"{text} seed {seed}", SHARED | own, {"lr": text, "beta": text})
            reward = [0.1 * number + 0.01 * seed, 0.2, 0.3 * number]
            rows = {"prompt_id": [0, 1, 2], "sample": 0, "prompt": text, "text": text, "reward": reward}
            cell.table(pd.DataFrame(rows), "samples.json")
            cell.log({"reward": sum(reward) / 3, "kl": 0.1}, 1)
            cell.finish()
        tags = {"plo.of": key, "plo.evaluation": "hh", "plo.settings": "s"}
        run = tracker.start_evaluation(parent, f"{key}/hh", "hh", tags, {"judge": text})
        judge = {"judge": text, "version": "v1", "prompt": text, "given": text}
        items = pd.DataFrame({"prompt_id": [0, 1, 2], "win_rate": [0.0, 1.0, 0.5]})
        about = {"notes": [text], "lengths": {}, "but_judge": "", "judges": [judge]}
        about |= {"curves": {"1": {"win_rate": 0.2}, "2": {"win_rate": 0.5}}, "repeats": 2}
        run.table(pd.concat([items.assign(repeat=k, win_rate=k / 2) for k in (0, 1)]), "hh_repeats.json")
        run.finding("hh", {"win_rate": 0.5}, items, about)
    return read(Tracker(path, create=False))


def test_latex_has_no_command_but_its_own(board):
    latex = to_latex(board)
    lines = latex.splitlines()
    commands = {*re.findall(r"\\([A-Za-z]+)", latex)}
    assert commands <= {
        "begin", "end", "caption", "toprule", "midrule", "bottomrule", "par", "smallskip", "footnotesize", "usepackage",
        "textbackslash", "textasciicircum", "textasciitilde", "textless", "textgreater", "textbar", "textquotedbl",
        "textasciigrave", "textquotesingle", "pm", "uparrow", "downarrow", "Delta", "ldots",
    }  # fmt: skip
    assert re.findall(r"\\(?:begin|end)\{(\w+)\}", latex) == ["table", "tabular", "tabular", "table"]
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    columns = {len(re.findall(r"(?<!\\)&", line)) for line in body}
    assert len(body) == len(board.rows) and len(columns) == 1  # no text opened a cell or a row
    bare = re.sub(r"\\[^A-Za-z]|\\[A-Za-z]+|\\\(|\\\)", "", latex.split("\n", 1)[1])
    assert bare.count("{") == bare.count("}") and not {*bare} & {*"$#^~%\\"}
    assert max(map(len, lines)) < 12_000 and latex.isascii() and not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", latex)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here (Debian: texlive-latex-recommended)")
def test_latex_is_typeset_without_an_error(board, tmp_path):
    """By pdfLaTeX, which may write no file but its own and run nothing."""
    (tmp_path / "table.tex").write_text(to_latex(board), "utf-8")
    packages = r"\usepackage[T1]{fontenc}\usepackage{booktabs}\usepackage{textcomp}\usepackage[landscape]{geometry}"
    document = rf"\documentclass{{article}}{packages}\begin{{document}}\input{{table}}\end{{document}}"
    (tmp_path / "page.tex").write_text(document, "utf-8")
    command = ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=100)
    log = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 0 and "Missing character" not in log, log[-3000:]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".aux", ".log", ".pdf", ".tex", ".tex"]
    if shutil.which("pdftotext"):
        told = subprocess.run(["pdftotext", "page.pdf", "-"], cwd=tmp_path, capture_output=True, text=True).stdout
        for name in ("script", "image", "template", "write18"):
            assert "".join(HOSTILE[name].split())[:20] in "".join(told.split()), name


def test_markdown_has_its_own_tables_alone(board):
    tokens = MarkdownIt("js-default").parse(to_markdown(board))  # with tables, without HTML
    raw = MarkdownIt("commonmark").enable("table").parse(to_markdown(board))
    assert not [token for token in raw if token.type in ("html_block", "fence", "code_block")]
    inline = [child.type for token in raw for child in token.children or ()]
    assert not {"html_inline", "link_open", "image"} & {*inline}
    cells = [0]
    for token in tokens:
        if token.type == "tr_open":
            cells.append(0)
        cells[-1] += token.type in ("td_open", "th_open")
    first = next(index for index, token in enumerate(tokens) if token.type == "table_open")
    last = next(index for index, token in enumerate(tokens) if token.type == "table_close")
    rows = sum(token.type == "tr_open" for token in tokens[first:last])
    assert rows == 1 + len(board.rows)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f]", to_markdown(board))


def test_csv_has_no_formula_and_no_control_characters(board):
    text = to_csv(board)
    lines = list(csv.reader(io.StringIO(text)))
    assert len(lines) == 1 + len(board.rows) and len({*map(len, lines)}) == 1
    for cell in (cell for line in lines for cell in line):
        if cell.lstrip()[:1] in tuple("=+-@\uff1d\uff0b\uff0d\uff20") and cell.strip():
            float(cell)  # a number, and nothing else
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)


def test_no_escape_sequence_reaches_a_terminal(board):
    out = io.StringIO()
    Terminal(file=out, force_terminal=True, width=120, color_system=None).print(to_terminal(board, 120))
    assert not re.search(r"[\x00-\x09\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", out.getvalue())
    assert not re.search(r"\x1b(?!\[[\d;]*m)", out.getvalue())  # rich's own styles alone


def test_files_are_written_and_json_keeps_the_texts(board, tmp_path):
    write(board, tmp_path)
    assert json.loads((tmp_path / "leaderboard.json").read_text("utf-8"))["primary"] == "reward"
    variants = {row["variant"] for row in json.loads(to_json(board))["rows"]}
    assert {text for text in HOSTILE.values() if "\x00" not in text} <= variants  # MLflow has no NUL


def test_what_is_harmless_reads_as_before():
    assert escape("dpo @ lr=0.01, beta -5%, a-1") == r"dpo @ lr=0.01, beta \(-\)5\%, a-1" and escape("---") == "-{}-{}-"
    assert escape("Größe ±2 ↑") == r"Größe \(\pm\)2 \(\uparrow\)"
    assert escape("\u05d0") == "U+05D0 " and escape("a " * 100).endswith(" ... (40 more characters)")


def test_a_long_name_keeps_its_ends_in_latex_and_no_word_is_longer_than_a_line(board):
    assert escape(f"of {'a' * 99_999}b, c") == rf"of {'a' * 30}\ldots{{}}{'a' * 27}b, c"
    body = to_latex(board).split(r"\midrule")[1].split(r"\bottomrule")[0]
    names = [line.split(" & ")[0].strip() for line in body.splitlines()]
    assert rf"{'x' * 20}\ldots{{}}{'x' * 19}" in names
    assert not re.search("[a-z]{61}", to_latex(board))
