"""A disk that is full: a comparison ends there, instead of failing at every cell."""

import errno
import os

import pytest

import plo.experiment.runner
from plo.experiment.matrix import compare
from plo.tracking import Tracker


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
