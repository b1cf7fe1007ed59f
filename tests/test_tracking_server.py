"""What is recorded in a server comes back as from a file, in few requests."""

import math

import pandas as pd
import pytest

from plo.tracking import Tracker, TrackingError, tables
from plo.tracking.runs import ClientReader

FRAME = pd.DataFrame({"prompt_id": [0, 1], "reward": [0.25, math.nan], "text": ["a", "ü\x00"]})


@pytest.fixture
def recorded(store, tmp_path):
    tracker = Tracker(store, str(tmp_path))
    parent = tracker.comparison("one", "key", {"losses": ["dpo"]}, cells={str(i): f"dpo seed {i}" for i in range(4)})
    for seed in range(3):
        cell = tracker.start_cell(parent, str(seed), f"dpo seed {seed}", {"plo.seed": seed}, {"lr": "0.1"})
        for step in (2, 1, 1, 3):
            cell.log({"reward": step + seed, "kl": math.nan if step == 2 else math.inf}, step)
        cell.table(FRAME, "samples.json")
        cell.finish({"reward": 9.0})
    tracker.end_comparison(parent, ok=True)
    return tracker


def test_a_round_trip(recorded):
    (comparison,) = Tracker(recorded.uri, recorded.experiment, create=False).comparisons()
    cells = comparison.cells()
    assert comparison.status == "FINISHED" and comparison.config() == {"losses": ["dpo"]}
    assert comparison.missing(cells) == ["dpo seed 3"] and [cell.name for cell in cells] == [
        f"dpo seed {i}" for i in range(3)
    ]
    for seed, cell in enumerate(cells):
        assert cell.tags["plo.seed"] == str(seed) and cell.params == {"lr": "0.1"} and cell.metrics["reward"] == 9.0
        assert cell.history("reward") == {1: 1.0 + seed, 2: 2.0 + seed, 3: 9.0} and list(cell.history("reward")) == [
            1,
            2,
            3,
        ]
        assert math.isnan(cell.history("kl")[2]) and cell.history("kl")[3] == math.inf and cell.history("none") == {}
    found = tables(cells, "samples.json")
    assert len(found) == 3
    pd.testing.assert_frame_equal(found[cells[0].run_id], FRAME, check_exact=True)
    with pytest.raises(TrackingError, match=r"no readable other\.json"):
        cells[0].table("other.json")


def test_curves_of_finished_runs_are_fetched_together(recorded, monkeypatch):
    if recorded.file is not None:
        pytest.skip("a file is read without requests")
    reader = ClientReader(recorded._client)
    runs = reader.search(recorded._id, {"plo.kind": "cell"})
    asked = []
    monkeypatch.setattr(recorded._client._target, "get_metric_history", lambda *about: asked.append(about) or [])
    together = [reader.history(run.run_id, "reward") for run in runs]
    assert [len(points) for points in together] == [5, 5, 5] and not asked
    monkeypatch.undo()
    alone = ClientReader(recorded._client)  # which has searched nothing
    assert [alone.history(run.run_id, "reward") for run in runs] == together
