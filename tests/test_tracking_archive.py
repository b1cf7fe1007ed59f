"""Archives of comparisons: moved without loss, imported once, refused if damaged or hostile; imports that are killed go on."""

import json
import math
import zipfile
from hashlib import sha256

import pandas as pd
import pytest

from plo.leaderboards import read, to_csv, to_json, to_markdown
from plo.leaderboards.manifest import manifest
from plo.tracking import Tracker, TrackingError, export, import_archive
from plo.tracking.archive import opened

SHARED = {"plo.data": "data", "plo.model": "model", "plo.evaluation": "evaluation"}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A comparison with a stage, a failed attempt, a judged evaluation, and odd numbers; another one that is not exported."""
    path = tmp_path_factory.mktemp("original") / "plo.db"
    tracker = Tracker(path)
    tracker.judge_check("stub", "v1", {"card": ["agrees"], "pairs": 3, "informative": True})
    tracker.judge_check("another", "v1", {"card": [], "pairs": 3, "informative": True})
    for name in ("other", "main"):
        settings = {"name": name, "store": "https://me:secret@host/mlflow"}
        parent = tracker.comparison(name, f"key-{name}", settings, {"plo.data": "data"}, {"dpo/0": "dpo seed 0"})
        tracker.data_input(parent, "pairs.jsonl", "d" * 64)
        if name == "other":
            stage = tracker.start_stage(parent, "stage-1", "sft")
            stage.log({"loss": 1.0}, 1)
            stage.finish({"seconds": 3.0})
        for loss in ("reference", "dpo", "ipo"):
            own = {"plo.loss": loss, "plo.variant": loss, "plo.seed": 0, "plo.tuning": json.dumps(None)}
            key, about = f"{name}/{loss}/0", SHARED | own | {"plo.stages": '["stage-1"]', "plo.long": "x" * 12_000}
            if loss == "dpo":
                tracker.start_cell(parent, key, "dpo seed 0", about).fail(ValueError("a first attempt"))
            cell = tracker.start_cell(
                parent, key, f"{loss} seed 0", about, {"lr": "0.1", "beta": "0.1", "peft": "lora"}
            )
            cell.log({"loss": math.inf, "reward": 0.1}, 1)
            cell.log({"loss": math.nan, "reward": {"reference": 0.1, "dpo": 1 / 3, "ipo": 0.2}[loss], "kl": 0.5}, 2)
            rows = {
                "prompt_id": [0, 1, 2],
                "sample": 0,
                "prompt": "p",
                "text": "t\u05d0",
                "reward": [0.1, 0.2, len(loss) / 7],
            }
            cell.table(pd.DataFrame(rows), "samples.json")
            cell.finish()
            if loss == "dpo":
                tags = {"plo.of": key, "plo.evaluation": "hh", "plo.settings": "s"}
                judged = {"judge": "stub", "version": "v1", "prompt": None, "given": "stub"}
                run = tracker.start_evaluation(parent, f"{key}/hh", "hh of dpo", tags)
                about = {"notes": [], "lengths": {}, "but_judge": "", "judges": [judged]}
                run.finding("hh", {"win_rate": 0.5}, pd.DataFrame({"prompt_id": [0, 1], "win_rate": [0.0, 1.0]}), about)
    return path


@pytest.fixture
def archive(original, tmp_path):
    path = tmp_path / "main.zip"
    export(Tracker(original, create=False).comparisons("main")[0], path)
    return path


def texts(store):
    board = read(Tracker(store, create=False), "main")
    return [to_json(board), to_csv(board), to_markdown(board), json.dumps(manifest(board))]


def runs(store):
    return {
        run.run_id
        for kind in ("comparison", "cell", "evaluation", "stage", "judge")
        for run in Tracker(store)._search(kind=kind)
    }


def test_a_moved_comparison_gives_the_same_leaderboard_byte_for_byte(original, archive, tmp_path):
    here = tmp_path / "here.db"
    done = import_archive(Tracker(here), archive)
    assert (done.name, done.known) == (
        "main",
        0,
    ) and done.new == 8  # comparison, 3 cells, an attempt, evaluation, stage, judge
    assert texts(here) == texts(original)
    # What was recorded is all there: the archive of the imported comparison is the same.
    export(Tracker(here, create=False).comparisons("main")[0], tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()


def test_a_second_import_adds_nothing(archive, tmp_path):
    import_archive(Tracker(tmp_path / "here.db"), archive)
    before = runs(tmp_path / "here.db")
    done = import_archive(Tracker(tmp_path / "here.db"), archive)
    assert (done.new, done.known) == (0, 8) and runs(tmp_path / "here.db") == before


@pytest.mark.parametrize("step", ["log_batch", "log_artifact", "set_terminated"])
@pytest.mark.parametrize("calls", [1, 4])
def test_an_import_that_was_killed_goes_on(original, archive, tmp_path, monkeypatch, step, calls):
    here, left = tmp_path / "here.db", [calls]
    tracker = Tracker(here)
    whole = getattr(tracker._client._target, step)

    def killed(*arguments, **keywords):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return whole(*arguments, **keywords)

    monkeypatch.setattr(tracker._client._target, step, killed)
    with pytest.raises(KeyboardInterrupt):
        import_archive(tracker, archive)
    assert not Tracker(here, create=False).comparisons()  # no table shows a half of it
    monkeypatch.undo()
    import_archive(Tracker(here), archive)
    assert texts(here) == texts(original) and len(runs(here)) == 8


def test_a_comparison_that_was_recorded_here_too_is_refused(archive, tmp_path):
    tracker = Tracker(tmp_path / "here.db")
    tracker.comparison("main", "key-main", {})
    with pytest.raises(TrackingError, match=r"has recorded main \(key-main\) itself.*--store FILE.db"):
        import_archive(tracker, archive)


def test_an_import_where_it_came_from_changes_nothing(original, archive):
    assert import_archive(Tracker(original), archive)[2:] == (0, 8)


def test_a_damaged_archive_is_refused_before_anything_is_imported(archive, tmp_path, harm):
    harm(archive)
    with pytest.raises(TrackingError, match=r"main.zip (is damaged|cannot be read)"):
        import_archive(Tracker(tmp_path / "here.db"), archive)
    assert not runs(tmp_path / "here.db")


def test_an_archive_with_an_altered_bit_is_refused_wherever_the_bit_is(archive):
    whole = archive.read_bytes()
    with opened(archive) as intact:
        index, records = intact.index, [intact.run(run) for run in intact.index["runs"]]
    refused = 0
    for place in range(0, len(whole), max(1, len(whole) // 300)):
        archive.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            with opened(archive) as found:  # an altered time or comment of a member changes nothing
                assert found.index == index and [found.run(run) for run in index["runs"]] == records
        except TrackingError:
            refused += 1
    assert refused > 150


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/evil", "files/../../evil", f"files/{'a' * 32}/../../../evil", f"files/{'a' * 32}/..\\evil"],
)
def test_a_path_that_climbs_out_of_the_archive_is_refused(archive, tmp_path, name):
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, b"x")
    with pytest.raises(TrackingError, match="no archive of plo has: nothing of it was imported"):
        import_archive(Tracker(tmp_path / "here.db"), archive)
    assert not list(tmp_path.rglob("evil*")) and not runs(tmp_path / "here.db")


def test_a_changed_member_is_refused_though_the_zip_is_whole(archive, tmp_path):
    with zipfile.ZipFile(archive) as file, zipfile.ZipFile(tmp_path / "forged.zip", "w") as forged:
        for name in file.namelist():
            content = file.read(name)
            forged.writestr(name, content.replace(b'"beta": "0.1"', b'"beta": "0.2"'))
    with pytest.raises(TrackingError, match=r"runs/[0-9a-f]{32}.json is not as it was written"):
        import_archive(Tracker(tmp_path / "here.db"), tmp_path / "forged.zip")


def test_sums_are_what_sha256sum_reads(archive):
    with zipfile.ZipFile(archive) as file:
        lines = file.read("SHA256SUMS").decode().splitlines()
        assert lines == [f"{sha256(file.read(name)).hexdigest()}  {name}" for name in file.namelist()[:-1]]


def test_an_archive_has_no_password(archive):
    with zipfile.ZipFile(archive) as file:
        content = b"".join(map(file.read, file.namelist()))
    assert b"https://host/mlflow" in content and b"secret" not in content


def test_equal_records_give_equal_archives(original, archive, tmp_path):
    export(Tracker(original, create=False).comparisons("main")[0], tmp_path / "twice.zip")
    assert (tmp_path / "twice.zip").read_bytes() == archive.read_bytes()


@pytest.mark.slow
def test_a_server_gives_new_ids_and_the_numbers_stay(original, archive, sqlite_server, tmp_path, monkeypatch):
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    tracker = Tracker(sqlite_server, "archives")
    assert import_archive(tracker, archive).new == 8 and import_archive(tracker, archive).new == 0
    ids = {
        run.run_id: run.tags["plo.imported"]
        for kind in ("comparison", "cell", "stage")
        for run in tracker._search(kind=kind)
    }
    there = to_json(read(Tracker(sqlite_server, "archives", create=False), "main"))
    for new, former in ids.items():
        there = there.replace(new, former).replace(new[:8], former[:8])  # notes have its beginning
    assert json.loads(there) == json.loads(texts(original)[0])
