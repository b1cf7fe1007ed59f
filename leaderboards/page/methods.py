"""Description of a method for the page. The caller supplies it, as a leaderboard imports no losses."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A loss, recipe or scorer of the table: its name, one sentence on its idea, and the address of its paper or ""."""

    name: str
    idea: str
    link: str = ""
