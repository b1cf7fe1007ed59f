"""What plo keeps is whole, or not there: the checksums are compared with Python's hashlib and, where it is, sha256sum."""

import hashlib
import os
import shutil
import subprocess
import threading
import time

import pytest

from plo import store


@pytest.fixture(autouse=True)
def another_process(monkeypatch):
    """A function that forgets what this process verified, as another process would not know it."""

    def forget():
        store._verified.clear()
        store._unsummed.clear()

    forget()
    return forget


def write_text(path, text):
    store.write(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def flip(file, place=-1):
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_a_value_has_its_checksum_alongside(tmp_path):
    write_text(tmp_path / "a" / "value.txt", "é\n")

    assert (tmp_path / "a" / "value.txt").read_bytes() == "é\n".encode()
    digest = hashlib.sha256("é\n".encode()).hexdigest()
    assert (tmp_path / "a" / "value.txt.sha256").read_text() == f"{digest}  value.txt\n"
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["value.txt", "value.txt.sha256"]
    assert store.intact(tmp_path / "a" / "value.txt")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum")
def test_sha256sum_checks_files_and_sealed_folders(tmp_path):
    store.write_json(tmp_path / "value.json", [1, 2])
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inner" / "b.bin").write_bytes(b"\0\1")
    (tmp_path / "folder" / "a.txt").write_text("a")
    store.seal(tmp_path / "folder")

    for folder, sums in ((tmp_path, "value.json.sha256"), (tmp_path / "folder", "SHA256SUMS")):
        subprocess.run(["sha256sum", "--check", "--strict", sums], cwd=folder, check=True)


@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_file_is_dropped_with_a_line(tmp_path, caplog, another_process, cut):
    path = tmp_path / "value.json"
    store.write_json(path, {"loss": 0.4317})
    assert store.read_json(path) == {"loss": 0.4317}
    another_process()
    if cut:
        path.write_bytes(path.read_bytes()[:-3])
    else:
        flip(path, -3)  # still JSON, of another number

    assert store.read_json(path) is None
    assert list(tmp_path.iterdir()) == []
    [line] = caplog.messages
    assert line == f"{path} is damaged (its sha256 differs from the recorded one): removed; it is made anew."
    assert store.read_json(path) is None and len(caplog.messages) == 1  # not there: nothing to say


def test_damage_within_the_process_is_seen_by_the_file_s_time(tmp_path):
    path = tmp_path / "value.txt"
    write_text(path, "a" * 9)
    assert store.intact(path)
    flip(path)
    assert not store.intact(path)


def test_a_file_is_read_through_once_a_process(tmp_path, monkeypatch, another_process):
    path, read = tmp_path / "value.txt", []
    write_text(path, "a")
    another_process()
    digest = store.content_digest
    monkeypatch.setattr(store, "content_digest", lambda file: read.append(file) or digest(file))

    assert all(store.intact(path) for _ in range(3))
    assert read == [path]


@pytest.mark.parametrize("what", ["flipped", "cut", "gone", "checksum flipped"])
def test_a_sealed_folder_is_dropped_as_a_whole(tmp_path, caplog, another_process, what):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"0123456789")
    (folder / "b.bin").write_bytes(b"0123456789")
    assert not store.is_sealed(folder)
    store.seal(folder)
    assert store.is_sealed(folder) and store.intact(folder)
    another_process()
    if what == "flipped":
        flip(folder / "b.bin")
    elif what == "cut":
        (folder / "b.bin").write_bytes(b"01234")
    elif what == "gone":
        (folder / "b.bin").unlink()
    else:
        flip(folder / "SHA256SUMS", 0)

    assert not store.intact(folder) and not folder.exists()
    [line] = caplog.messages
    assert str(folder) in line and ("a.bin" if what == "checksum flipped" else "b.bin") in line


def test_files_of_an_earlier_version_are_made_again_with_one_line_a_folder(tmp_path, caplog):
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("1")
        assert store.read_json(tmp_path / name) is None

    assert list(tmp_path.iterdir()) == []
    [line] = caplog.messages
    assert "has no checksum" in line


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "value.txt"
    write_text(path, "old")

    def fails(aside):
        aside.write_text("new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write(path, fails)
    assert store.read(path, lambda file: file.read_text()) == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_killed_process_left_of_a_file_goes_when_it_is_written_again(tmp_path):
    path = tmp_path / "value[1].txt"
    abandoned, live, other = (
        tmp_path / f"{name}.partial" for name in (f"{path.name}.7-7", f"{path.name}.8-8", "another.txt.7-7")
    )
    for file in (abandoned, live, other):
        file.write_text("half")
    two_days_ago = time.time() - 2 * 86_400
    for file in (abandoned, other):
        os.utime(file, (two_days_ago, two_days_ago))

    write_text(path, "whole")

    assert not abandoned.exists() and live.exists() and other.exists()


def test_an_intact_file_that_is_none_of_its_kind_is_dropped(tmp_path, caplog):
    write_text(tmp_path / "value.json", "{")
    assert store.read_json(tmp_path / "value.json") is None
    assert "cannot be read" in caplog.text and not (tmp_path / "value.json").exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    def full(aside):
        aside.write_text("a part")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"value\.txt cannot be written: the disk is full"):
        store.write(tmp_path / "value.txt", full, durable=True)
    assert list(tmp_path.iterdir()) == []


def test_many_threads_write_one_value(tmp_path):
    path, text = tmp_path / "value.txt", "x" * 100_000
    threads = [threading.Thread(target=write_text, args=(path, text)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store._verified.clear()
    assert store.read(path, lambda file: file.read_text()) == text
