"""`python -m plo` is `plo`."""

from plo.cli import app

app()
