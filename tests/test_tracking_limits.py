"""What is beyond MLflow's limits is recorded all the same, in a file and in a server's databases, and stays distinct."""

import json

import numpy as np
import pandas as pd
import pytest

from plo.metric import Metric
from plo.tracking import Tracker
from plo.tracking.limits import allowed_name, batches, flat, shortened, tag_parts, whole_tags

LONG = "x" * 300


def test_names_that_are_equal_up_to_the_limit_stay_different():
    one, other = allowed_name(LONG + "1"), allowed_name(LONG + "2")
    assert one != other and len(one) == len(other) == 250 and one[:231] == "x" * 231
    assert allowed_name("y" * 250) == "y" * 250 and allowed_name("dpo + 0.2*sft") == "dpo _ 0.2_sft"


def test_parameters():
    found = flat({"data": {"name": 1, "none": {}}, LONG + "1": 1, LONG + "2": 2, "a+b": 3, "a*b": 4, "v": "z" * 7000})
    assert found["data.name"] == "1" and found["data.none"] == "{}" and found["a_b"] == "3"
    assert sorted(found.values(), key=len)[:5] == ["1", "1", "2", "3", "4"] and len(found) == 7  # a_b of both is there
    assert len(found["v"]) == 6000 and shortened("z" * 7000, 6000) != shortened("z" * 7001, 6000)
    assert shortened("a\x00b\ud800", 10) == "a\ufffdb?"


@pytest.mark.parametrize("length", [0, 1, 4999, 5000, 5001, 10_000, 12_345])
def test_a_tag_of_any_length(length):
    text = "".join(str(i % 10) for i in range(length))
    parts = tag_parts("plo.notes", text)
    assert all(len(part) <= 5000 for part in parts.values()) and len(parts) == length // 5000 + 1
    before = tag_parts("plo.notes", "y" * 20_000)  # what an earlier, longer value has left does no harm
    assert whole_tags(before | parts)["plo.notes"] == text and whole_tags(parts) == {"plo.notes": text}


def test_a_tag_that_only_looks_like_a_part_stays():
    tags = {"reward": "short", "reward part 2": "of another metric"}
    assert whole_tags(tags) == tags


def test_batches_have_limits_of_number_and_size():
    assert [len(batch) for batch in batches(range(250), lambda one: 1)] == [100, 100, 50]
    assert [*batches([300_000, 200_000, 1, 500_000], lambda one: one)] == [[300_000], [200_000, 1], [500_000]]


def test_everything_beyond_the_limits_comes_back(store, tmp_path):
    tracker = Tracker(store, str(tmp_path))
    wide = {f"setting {i}": "ä" * 3000 for i in range(105)}  # more than one call takes, in number and in bytes
    parent = tracker.comparison("c" * 9000, "key", {"wide": wide, "losses": {LONG: 1, LONG + "2": 2}})
    tracker.data_input(parent, "/data/" + LONG * 3, "d" * 64)
    tags = {"plo.tuning": json.dumps(["ö" * 4000] * 6), **{f"plo.many.{i}": "v" for i in range(130)}}
    cell = tracker.start_cell(parent, "a", f"{LONG} seed 0", tags, {"loss.x": "z" * 7000})
    values = {f"{LONG}{i}": i / 7 for i in range(1100)} | {"big": 1e308, "small": -5e-324, "inf": np.inf, "nan": np.nan}
    cell.log(values, 1)
    cell.describe([Metric(f"{LONG}{i}", "") for i in range(105)])
    for i in range(20):
        cell.tag(f"plo.tag.{i}", "ü" * 4900)
    cell.tag("plo.notes", "nul \x00" + "n" * 20_000)
    cell.table(pd.DataFrame({"text": ["a\x00b", "x" * 2_000_000]}), "samples.json")
    cell.fail(ValueError("nul \x00" + "e" * 9000))
    (comparison,) = Tracker(store, str(tmp_path), create=False).comparisons("c" * 9000)
    (read,) = comparison.cells()
    assert read.tags["plo.tuning"] == tags["plo.tuning"] and read.tags["plo.many.129"] == "v"
    assert read.name.startswith("x" * 231 + "...") and len(read.name) == 250
    assert len(read.metrics) == 1104 and read.metrics["small"] == -5e-324
    assert read.metrics[allowed_name(f"{LONG}8")] == 8 / 7 and read.metrics["inf"] == np.inf
    assert len(read.described) == 105 and read.described[allowed_name(f"{LONG}8")].name == allowed_name(f"{LONG}8")
    assert read.tags["plo.tag.19"] == "ü" * 4900 and read.tags["plo.notes"] == "nul \ufffd" + "n" * 20_000
    assert read.table("samples.json")["text"].tolist() == ["a\x00b", "x" * 2_000_000]
    assert len(read.params["loss.x"]) == 6000 and len(read.tags["plo.error"]) == 500
    params = tracker._client.get_run(parent).data.params
    assert len(params) == 107 and params["wide.setting 104"] == "ä" * 3000
