"""Text that plo did not write: shown as it is, never obeyed by the terminal or by rich."""

import ast
import io
import logging
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from plo.cli.shared import friendly, handler, logging_to_terminal
from plo.errors import PloError
from plo.terminal import Terminal, plain, say

ROOT = Path(__file__).parents[1]
PACKAGES = [path for folder in ("plo", "losses", "evals", "leaderboards") for path in (ROOT / folder).rglob("*.py")]
EVIL = "[/red]\x1b[2J\x1b]0;title\x07\x9b31m\r:smile: [bold]"
SHOWN = r"[/red]\x1b[2J\x1b]0;title\x07\x9b31m\r:smile: [bold]"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (EVIL, SHOWN),
        ("a\tb\n", "a\tb\n"),
        ("\x00\x7f\x85", r"\x00\x7f\x85"),
        ("abc \u202e cba", r"abc \u202e cba"),  # reads from right to left after it
        ("\ud800", r"\ud800"),  # could not be written as UTF-8
        ("Grüße, 你好, 👩‍👩‍👧", "Grüße, 你好, 👩‍👩‍👧"),
        (ValueError("\x1b"), r"\x1b"),
    ],
)
def test_control_characters_are_shown_as_escapes(text, shown):
    assert plain(text) == shown


@pytest.mark.parametrize("make", [Console, Terminal])
def test_a_line_is_neither_markup_nor_control(make):
    out = io.StringIO()
    say(make(file=out, force_terminal=True, color_system=None), EVIL, (EVIL, "red"), style="bold")
    assert SHOWN + SHOWN in out.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")


def test_a_table_and_a_string_on_plo_s_terminal_are_neither():
    out = io.StringIO()
    console, table = Terminal(file=out, width=200), Table(title=EVIL)
    table.add_column(EVIL)
    table.add_row(EVIL)
    console.print(table)
    console.print(EVIL)
    stripped = SHOWN.replace(r"\x07", "").replace(r"\r", "")  # by rich
    assert out.getvalue().endswith(f"{stripped}\n") and out.getvalue().count("[/red]") == 4
    assert not set(out.getvalue()) & {"\x1b", "\x9b", "\x07", "\r"}


def test_an_error_s_message_is_neither(capsys):
    with pytest.raises(Exception, match="2"), friendly():
        raise PloError(f"the data {EVIL} is not there")
    said = capsys.readouterr().err
    assert SHOWN in said and not set(said) & {"\x9b", "\x07", "\r"}


def printed(**levels):
    """What the command line shows of records of each level."""
    shown = io.StringIO()
    terminal = Terminal(file=shown, force_terminal=True, color_system="standard", width=200)
    with pytest.MonkeyPatch.context() as patch, logging_to_terminal(**levels):
        patch.setattr(handler, "console", terminal)
        log = logging.getLogger("plo")
        log.debug("a detail")
        log.info("done   dpo seed 0: reward %.2f", 0.5)
        log.info("3 cells %s", EVIL)
        log.warning("100% of it is lost")
        log.error("failed ipo seed 0")
    return shown.getvalue()


def test_log_records_are_lines_on_the_terminal_with_a_coloured_outcome():
    lines = printed().splitlines()
    assert lines[0] == "\x1b[32mdone\x1b[0m   dpo seed 0: reward 0.50" and lines[1] == f"3 cells {SHOWN}"
    assert lines[2] == "\x1b[33m100% of it is lost\x1b[0m" and lines[3] == "\x1b[31mfailed\x1b[0m ipo seed 0"
    assert len(lines) == 4


def test_verbose_shows_more_quiet_and_other_processes_show_warnings_alone(monkeypatch):
    assert "a detail" in printed(verbose=True)
    quiet = printed(quiet=True).splitlines()
    assert [line.split("m")[1][:4] for line in quiet] == ["100%", "fail"]
    monkeypatch.setenv("RANK", "1")
    assert printed().splitlines() == quiet
    assert logging.getLogger("plo").handlers == [] and logging.getLogger("plo").level == logging.NOTSET


def calls(path):
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_goes_to_the_terminal_through_say_alone(path):
    """Whatever is printed otherwise is a table, or a text that plo wrote itself (JSON escapes by itself)."""
    if (
        path.name in ("terminal.py", "make_pairs.py") or path.parent.name == "pocket" or "published" in path.parts
    ):  # scripts print what plo wrote itself
        return
    assert "rich.markup" not in path.read_text(), "say and line need no escape"
    if path.parent.name != "cli":
        printing = [name for call in calls(path) if (name := ast.unparse(call.func)) in ("print", "say", "typer.echo")]
        assert not printing, f"{path}: library code logs, and the command line prints"
    for call in calls(path):
        source = ast.unparse(call)
        function = ast.unparse(call.func)
        first = call.args[0] if call.args else None
        if function.endswith("console.print"):
            assert first is None or isinstance(first, ast.Name), f"{source}: use say"
        elif function.endswith("console.status"):
            assert isinstance(first, ast.Call) and first.func.id == "line", f"{source}: use line"
        elif function in ("print", "typer.echo"):
            ours = ("json", "as_json", "to_json", "plain", "__version__")
            assert any(f"{name}(" in source or f"{name}." in source or f"{{{name}}}" in source for name in ours), (
                f"{source}: use say or plain"
            )
        elif function == "Console":
            raise AssertionError(f"{source}: use Terminal")
