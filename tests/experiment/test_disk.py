"""Disks that are full or read-only, and files that vanish: a sentence with place and remedy, and the same table once it is mended."""

import errno
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import plo.experiment.runner
from plo.backbone.trainer import PreferenceTrainer
from plo.errors import PloError
from plo.experiment.matrix import compare
from plo.faults import sentence
from plo.tracking import Tracker

STAGED = {"losses": ["sft"], "stages": ["sft", "preference"], "train.steps": 3, "model.dtype": "float32"}
UNDISTURBED = []  # filled once
PLACES = {"out": "runs", "store": "records", "PLO_HOME": "home"}  # the three folders that plo writes to


def test_a_comparison_ends_where_the_disk_is_full(tiny, monkeypatch):
    tried = []

    def full(cell, *arguments):
        tried.append(cell.name)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "checkpoint-1")

    monkeypatch.setattr(plo.experiment.runner, "run_cell", full)
    with pytest.raises(OSError, match="No space left"):
        compare(tiny())
    assert tried == ["reference seed 0"]
    assert [cell.status for cell in Tracker(create=False).cells()] == ["FAILED"]


class Disk:
    """A small disk of its own, made of memory."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("no right to mount a small disk (root has it outside containers)")

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.folder / "ballast").open("wb", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                while True:
                    try:
                        file.write(b"\0" * size)
                    except OSError:
                        break

    def make_room(self) -> None:
        """Remove what `fill` wrote."""
        (self.folder / "ballast").unlink()

    def remount(self, how: str) -> None:
        """Make the disk read-only ("ro"), or to be written again ("rw")."""
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path):
    """Mounts a small disk at a folder."""
    disks = []

    def make(name):
        disks.append(Disk(tmp_path / name))
        return disks[-1]

    yield make
    for one in disks:
        subprocess.run(["umount", "-l", str(one.folder)], capture_output=True)


def at_step(number, do, monkeypatch):
    """Do something at a training step, counted over stages and cells."""
    inner, calls = PreferenceTrainer.compute_loss, []

    def compute_loss(self, *arguments, **keywords):
        calls.append(self)
        if len(calls) == number:
            do()
        return inner(self, *arguments, **keywords)

    monkeypatch.setattr(PreferenceTrainer, "compute_loss", compute_loss)


def table(store):
    """Numbers of the finished cells, and the finished runs."""
    tracker = Tracker(store, create=False)
    cells = {
        cell.name: {name: value for name, value in cell.metrics.items() if not re.search("second|memory", name)}
        for cell in tracker.cells()
        if cell.status == "FINISHED"
    }
    return cells, sorted((run.tags["plo.kind"], run.name) for run in tracker._search() if run.status == "FINISHED")


def fault_of(experiment):
    """Return the message of a comparison that ends with a fault of the machine."""
    with pytest.raises((PloError, OSError)) as raised:
        compare(experiment)
    return str(raised.value) if isinstance(raised.value, PloError) else sentence(raised.value)


@pytest.fixture
def undisturbed(tiny, tmp_path):
    """The table of a run on a disk with room."""
    if not UNDISTURBED:
        assert not compare(tiny(store="undisturbed.db", out="undisturbed", **STAGED)).failed
        UNDISTURBED.extend(table("undisturbed.db"))
        shutil.rmtree(tmp_path / "home")
    return tuple(UNDISTURBED)


@pytest.mark.parametrize(
    ("which", "fault"),
    [
        ("out", "full"),
        ("store", "full"),
        ("PLO_HOME", "full"),
        pytest.param("out", "read-only", marks=pytest.mark.slow),  # the others hold files open, and cannot be remounted
    ],
)
def test_once_it_is_mended_the_same_command_ends_with_the_same_table(
    tiny, disk, undisturbed, monkeypatch, which, fault
):
    small, experiment = disk(PLACES[which]), tiny(store="records/plo.db", **STAGED)
    broken, mended = (
        (small.fill, small.make_room) if fault == "full" else (lambda: small.remount("ro"), lambda: small.remount("rw"))
    )
    with monkeypatch.context() as context:
        at_step(2 if which == "PLO_HOME" else 5, broken, context)  # in the stage, or in the cell
        said = fault_of(experiment)
    assert str(small.folder) in said and f"the disk is {fault}. M" in said and "start the same command again" in said
    if which == "out":  # what runs record goes through PLO_HOME
        assert "RUNNING" not in {cell.status for cell in Tracker("records/plo.db", create=False).cells()}
    mended()
    assert not compare(experiment).failed
    assert table("records/plo.db") == undisturbed
    assert not [path for path in small.folder.rglob("*") if path.name.endswith((".partial", ".new"))]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["full", "read-only"])
@pytest.mark.parametrize("which", PLACES)
def test_a_disk_that_is_full_or_read_only_from_the_start_is_a_sentence(tiny, disk, undisturbed, which, fault):
    small, experiment = disk(PLACES[which]), tiny(store="records/plo.db", **STAGED)
    small.fill() if fault == "full" else small.remount("ro")
    said = fault_of(experiment)
    assert str(small.folder) in said and f"the disk is {fault}. M" in said
    small.make_room() if fault == "full" else small.remount("rw")
    assert not compare(experiment).failed
    assert table("records/plo.db") == undisturbed


@pytest.mark.parametrize("what", ["reference", "runs", "home"])
def test_what_vanishes_while_plo_runs_costs_one_cell_at_most(tiny, undisturbed, monkeypatch, what):
    """Someone tidies up: the next start makes again what is missing."""
    folder = {"reference": Path("home/reference"), "runs": Path("runs"), "home": Path("home")}[what]
    with monkeypatch.context() as context:
        at_step(5, lambda: shutil.rmtree(folder), context)
        failed = compare(tiny(**STAGED)).failed
    assert set(failed) <= {"sft seed 0"}
    assert not failed or "No such file" in failed["sft seed 0"], failed
    assert not compare(tiny(**STAGED)).failed
    assert table("plo.db") == undisturbed
