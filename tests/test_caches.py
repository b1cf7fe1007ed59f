"""The caches: what is in them, what is damaged, and that nothing is pruned which a running process uses."""

import os
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from plo import caches, store
from plo.caches import CACHES
from plo.cli import app

DAY = 86_400.0


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PLO_HOME", str(tmp_path))
    return tmp_path.resolve()


def fill(name, key, size=100, days=0.0):
    """An entry of `size` bytes, last used `days` ago."""
    path = CACHES[name].path(key)
    file = path / "0.json" if path.suffix == "" else path
    store.write(file, lambda aside: aside.write_text("x" * size))
    then = time.time() - days * DAY
    for part in (file, store._sums(file)):
        os.utime(part, (then, then))
    return path


def keys(entries):
    return [(entry.cache, entry.key) for entry in entries]


def test_entries_are_listed_with_size_and_last_use(home):
    path = fill("reference", "a1", size=300, days=2)
    fill("outputs", "b2", size=10)
    fill("server-outputs", "c3")
    (home / "outputs" / "b2.lock").touch()

    listed = caches.entries()

    assert keys(listed) == [("reference", "a1"), ("outputs", "b2"), ("server-outputs", "c3")]
    checksum = 64 + len("  a1.safetensors\n")
    assert (listed[0].path, listed[0].size) == (path, 300 + checksum)
    assert time.time() - listed[0].last_use == pytest.approx(2 * DAY, abs=60)
    assert keys(caches.entries(["outputs"])) == [("outputs", "b2")]


def test_reading_a_value_counts_as_use():
    path = fill("reference", "a1", days=30)

    store.intact(path)

    [entry] = caches.entries()
    assert time.time() - entry.last_use < 60


def test_damage_is_found_in_files_folders_and_the_verdicts(home):
    file, folder = fill("reference", "a1"), fill("scores", "b2")
    (home / "verdicts.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 4000)
    store._verified.clear()
    assert [entry.damage() for entry in caches.entries(["reference", "scores"])] == [None, None]
    for path in (file, folder / "0.json"):
        path.write_text("y" * 100)

    damages = [entry.damage() for entry in caches.entries()]

    assert len(damages) == 3 and all(damages)
    assert file.exists() and (folder / "0.json").exists(), "looking removes nothing"


def test_prune_by_age_by_size_and_by_name():
    for days, key in enumerate("abcd"):
        fill("reference", key, size=100_000, days=days)
    fill("stages", "trained", days=99)

    assert keys(caches.prune(unused_for=2.5 * DAY, dry_run=True)[0]) == [("reference", "d")]
    assert len(caches.entries()) == 5, "a dry run removes nothing"
    caches.prune(unused_for=2.5 * DAY)
    assert keys(caches.entries(["reference"])) == [("reference", key) for key in "abc"]
    caches.prune(keep_bytes=210_000)
    assert keys(caches.entries(["reference"])) == [("reference", "a"), ("reference", "b")]
    caches.prune()
    assert keys(caches.entries()) == [("stages", "trained")], "what is expensive is pruned by its name alone"
    caches.prune(["stages"])
    assert caches.entries() == []


def test_what_another_process_uses_stays_until_it_ends(home):
    fill("reference", "used"), fill("reference", "free")
    code = "import sys; from plo import caches; caches.hold(caches.CACHES['reference'].path('used')); print(1, flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()

    removed, held = caches.prune()

    assert (keys(removed), keys(held)) == ([("reference", "free")], [("reference", "used")])
    other.kill()  # not even then is anything left behind
    other.wait()
    assert keys(caches.prune()[0]) == [("reference", "used")]
    assert list(home.glob("locks/*.uses")) == []


def test_this_process_holds_what_it_locks(home):
    with caches.lock(CACHES["scores"].path("made")):
        fill("scores", "made")

    assert keys(caches.prune()[1]) == [("scores", "made")]


def test_old_caches_are_reported_once(home, caplog):
    fill("reference", "a1")
    fill("stages", "b2")
    fill("server-outputs", "c3")

    caches.note_form()
    caches.note_form()

    assert [record.message for record in caplog.records if "nother version" in record.message] == [
        f"Another version of plo wrote the cache of references in {home} with other keys: what is needed is computed again. "
        "`plo cache prune --name reference --yes` frees the space."
    ]

    invoked = CliRunner().invoke(app, ["cache", "prune", "--name", "reference", "--yes"])
    assert invoked.exit_code == 0 and keys(caches.entries()) == [("stages", "b2"), ("server-outputs", "c3")]
