"""Faults of the machine and files that are broken: one sentence with place and remedy, and no run that goes on in vain."""

import ast
import errno
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
import typer
from safetensors import SafetensorError

import plo.tracking.store
from plo.backbone.load import load_backbone
from plo.backbone.model import ModelError
from plo.cli.shared import friendly
from plo.config import ModelConfig
from plo.configured import HyperParameterError
from plo.evals.judges import get_judge
from plo.faults import DiskFault, disk_fault, is_out_of_memory, on_disk, reason, sentence
from plo.tracking import Tracker, TrackingError

ROOT = Path(__file__).parents[1]
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/out/model.bin")


def behind(error):
    """What a library makes of an error of its own."""
    try:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("something went wrong") from cause
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FULL, "/out/model.bin cannot be written: the disk is full. Make room there"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/ro/x"), "/ro/x cannot be written: the disk is read-only"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), "/data/x cannot be .*permission is denied"),
        (
            RuntimeError("(sqlite3.OperationalError) database or disk is full [SQL: INSERT]"),
            "MLflow store.*disk is full",
        ),
        (RuntimeError("(sqlite3.OperationalError) attempt to write a readonly database"), "the disk is read-only"),
        (RuntimeError("(sqlite3.OperationalError) unable to open database file"), "permission is denied"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter: file write failed"), "is full"),
        (behind(FULL), "/out/model.bin cannot be written: the disk is full"),
    ],
)
def test_a_full_or_read_only_disk_is_a_sentence(error, said, capsys):
    with pytest.raises(typer.Exit) as ended, friendly():
        raise error
    assert ended.value.exit_code == 2
    words = " ".join(capsys.readouterr().err.split())
    assert len(words.split(". ")) <= 3 and "Traceback" not in words
    assert re.search(said, words), words


def test_what_writes_names_the_place_that_a_library_leaves_out(tmp_path, monkeypatch):
    with (
        pytest.raises(DiskFault, match=rf"^{tmp_path}/model cannot be written: the disk is full\. Make room") as raised,
        on_disk(tmp_path / "model"),
    ):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    assert disk_fault(raised.value) == str(raised.value)  # also where only that is looked at
    with pytest.raises(DiskFault, match="^/out/model.bin cannot"), on_disk(tmp_path), on_disk("http://host"):
        raise FULL
    with pytest.raises(ValueError, match="a bug"), on_disk(tmp_path):
        raise ValueError("a bug")


def test_sqlite_s_disk_io_error_is_looked_into(tmp_path, monkeypatch):
    error = RuntimeError("(sqlite3.OperationalError) disk I/O error [SQL: INSERT]")
    assert disk_fault(error, tmp_path / "missing" / "plo.db") is None  # a broken disk: there is room
    monkeypatch.setattr("plo.faults.ROOM", 2**70)
    assert "missing/plo.db cannot be written: the disk is full" in (
        disk_fault(error, tmp_path / "missing" / "plo.db") or ""
    )


def test_other_errors_of_files_and_memory():
    assert sentence(FileNotFoundError(errno.ENOENT, "No such file or directory", "/a/b")) == (
        "/a/b: No such file or directory. Name another file or folder."
    )
    assert "train.micro_batch_size" in sentence(torch.OutOfMemoryError("CUDA out of memory"))
    assert sentence(ValueError("a bug")) is None and disk_fault(KeyError("x")) is None
    with pytest.raises(ValueError, match="a bug"), friendly():
        raise ValueError("a bug")  # a traceback is the right answer


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ModelError("A cell ran out of memory."), False),
    ],
)
def test_lack_of_memory_has_many_names(error, is_one):
    assert is_out_of_memory(error) is is_one


def test_a_full_disk_is_no_reason_to_upgrade_a_database(tmp_path, monkeypatch):
    def full(file):
        raise FULL

    monkeypatch.setattr(plo.tracking.store, "make_sqlite_store", full)
    with pytest.raises(TrackingError, match="the disk is full") as caught:
        Tracker(tmp_path / "plo.db")
    assert "upgrade" not in str(caught.value)


class RunsCode:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.fixture
def broken(tiny_llama, tmp_path):
    """A model's folder, broken in one of several ways."""

    def make(how):
        folder = tmp_path / how
        model = tiny_llama().float()
        model.save_pretrained(folder)
        weights = folder / "model.safetensors"
        if how == "cut safetensors":
            weights.write_bytes(weights.read_bytes()[:1000])
        else:
            weights.unlink()
            torch.save({"x": RunsCode()} if how == "pickle" else model.state_dict(), folder / "pytorch_model.bin")
        if how == "cut pickle":
            (folder / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes()[:1000])
        return folder

    return make


@pytest.mark.parametrize("how", ["cut safetensors", "pickle", "cut pickle"])
def test_a_broken_model_is_a_sentence(how, broken, monkeypatch):
    monkeypatch.setattr("plo.backbone.pretrained.AutoTokenizer.from_pretrained", lambda path: None)
    with pytest.raises(ModelError, match=f"model '.*{how}' cannot be loaded: .*Give 'embedded'") as caught:
        load_backbone(ModelConfig(name=str(broken(how))))
    assert len(str(caught.value)) < 700 and ("safetensors" in str(caught.value) or how != "pickle")


def test_a_library_s_error_is_shortened():
    assert reason(ValueError("one\ntwo.")) == "one two"
    assert len(reason(ValueError("x" * 999))) == 251 and reason(KeyError()) == "KeyError"
    assert "run code" in reason(pickle.UnpicklingError("Weights only load failed"))


@pytest.mark.parametrize(
    "option",
    ["concurrency=0", "timeout=0", "retries=-1", "price_in=-1", "price_out=-0.5", "max_tokens=0", "longest=0"],
)
def test_bad_options_of_a_judge_are_a_sentence(option):
    name = option.partition("=")[0]
    with pytest.raises(HyperParameterError, match=rf"{name}=.* of the judge 'openai': Input should be greater than"):
        get_judge(f"openai:x@http://localhost:1/v1({option})")


PLAIN = {
    "ValueError",
    "RuntimeError",
    "OSError",
    "KeyError",
    "LookupError",
    "TypeError",
    "Exception",
    "FileNotFoundError",
}
# pydantic and `register_loss(check=...)` expect ValueError and make a PloError of it, readers catch their own errors, and the
# authors of tests read those of plo.testing.
CHECKS = {
    "plo/config.py", "plo/config_data.py", "losses/adadpo.py", "losses/weighted.py", "losses/f_dpo.py", "losses/wpo.py", "losses/simpo.py", "losses/bpo.py",
    "losses/adpo.py", "losses/scores.py",
    "losses/tbpo.py", "plo/data/messages.py", "plo/subjects/endpoint.py", "plo/subjects/client.py", "plo/testing.py",
    "plo/values.py",
}  # fmt: skip


def test_every_error_that_plo_raises_is_worded_for_users():
    found = []
    for folder in ("plo", "losses", "evals", "leaderboards"):
        for path in (ROOT / folder).rglob("*.py"):
            if str(path.relative_to(ROOT)) in CHECKS:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.Raise)
                    and isinstance(node.exc, ast.Call)
                    and ast.unparse(node.exc.func) in PLAIN
                ):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found, f"derive their errors from PloError: {found}"


def test_settings_are_checked_in_one_place():
    """`Section.of` words pydantic's errors; a section made otherwise of what a user gave would show them raw."""
    for folder in ("plo", "evals", "leaderboards"):
        for path in (ROOT / folder).rglob("*.py"):
            assert path.name in ("config.py", "section.py") or "model_validate(" not in path.read_text(), path
