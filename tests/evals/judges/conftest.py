"""Judges that a test registers are gone after it."""

import pytest


@pytest.fixture(autouse=True)
def _judges():
    from plo.evals.judges import JUDGES
    from plo.evals.judges.gold import GOLDS

    before = [(registry, dict(registry._entries)) for registry in (JUDGES, GOLDS)]
    yield
    for registry, entries in before:
        registry._entries = entries
