"""Completion of names in a shell: those of built-in losses, scorers, evaluations, ... without importing them.

An import of torch takes longer than anybody waits for a completion, so the names are read from the source files.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).parents[1]
REGISTRATIONS = {  # kind: folders of plo, and the source text before a name
    "losses": ("losses scorers", r"^@?(?:register_loss|register_recipe|LOSSES\.register|LOSSES\.alias)\(\s*"),
    "generators": ("losses", r"^@?register_generator\(\s*"),
    "scorers": ("scorers", r"^@?register_scorer\(\s*"),
    "evaluations": ("evals", r"^(?:@|\w+ = )?register_evaluation\(\s*"),
    "judges": ("evals/judges", r"^JUDGES\.register\(\s*"),
    "sources": ("data", r"^@?register_source\(\s*"),
}


def built_in(kind: str) -> list[str]:
    """Return the names of a kind of plug-in that plo itself registers, in alphabetical order."""
    folders, before = REGISTRATIONS[kind]
    name = re.compile(rf'{before}"(\w+)"', re.M)
    files = (path for folder in folders.split() for path in (ROOT / folder).glob("*.py"))
    found = {each for path in files for each in name.findall(path.read_text(encoding="utf-8"))}
    return sorted(found)


def complete_names(kind: str) -> Callable[..., list[str]]:
    """Make a completion of the names of a kind, or of the kind that the parameter `kind` names; after commas, of the last."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        chosen = ctx.params.get(kind, kind)
        before, comma, start = incomplete.rpartition(",")
        known = built_in(chosen) if chosen in REGISTRATIONS else []
        return [f"{before}{comma}{name}" for name in known if name.startswith(start)]

    return complete


def name_argument(kind: str, metavar: str, help: str) -> Any:
    """Make an argument whose value a shell completes by the names of a kind."""
    return typer.Argument(metavar=metavar, help=help, autocompletion=complete_names(kind))


def name_option(kind: str, help: str) -> Any:
    """Make an option whose value a shell completes by the names of a kind."""
    return typer.Option(help=help, autocompletion=complete_names(kind))
