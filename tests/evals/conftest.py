"""A file of verdicts of its own for every test; `stub` importable, whatever folder pytest starts in."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def no_verdicts_of_earlier_runs(tmp_path, monkeypatch):
    """Else a second run of the tests would find the first one's verdicts, and ask nothing."""
    monkeypatch.setattr("plo.evals.judges.cache.plo_home", lambda: tmp_path / "plo_home")
