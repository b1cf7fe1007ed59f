"""Folders of files that runs carry to other machines: trained models, weights of stages, token scores.

Each file goes to the run with its checksum, and a tag of the run, written last, has the hash of all checksums.
"""

import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from plo import store as stored
from plo.errors import one_line
from plo.faults import disk_fault
from plo.paths import text_digest
from plo.tracking.patience import TrackingError
from plo.tracking.store import Store

TAG = "plo.files."  # prefix of the tags
MODEL, STAGE = "model", "stage"  # names of the folders of cells and of stages


def upload(store: Store, run_id: str, folder: Path, name: str) -> str:
    """Copy the files of a folder that have checksums into the folder `name` of a run, and return the hash of the checksums.

    Where the run's files are on the same disk, they are hard links, which take no space.
    """
    own = store._folder(run_id)
    for file in _files(folder):
        place = PurePosixPath(name, *file.relative_to(folder).parts)
        if own is not None:
            _link(file, own / place)
        else:
            store._client.log_artifact(run_id, str(file), str(place.parent))
    return _digest(folder)


@dataclass(frozen=True)
class Artifact:
    """A folder of files that a run has, if `ActiveRun.artifacts` recorded it.

    Attributes:
        digest: hash of the files' checksums; None if they were not recorded.
    """

    store: Store
    run_id: str
    name: str
    digest: str | None

    @classmethod
    def of(cls, store: Store, run_id: str, tags: Mapping[str, str], name: str) -> "Artifact":
        """Return the folder `name` of a run with these tags."""
        return cls(store, run_id, name, tags.get(TAG + name))

    def damage(self, folder: Path) -> str | None:
        """Describe what is wrong with a copy of the files; None if it is as it was recorded. Nothing is removed."""
        if not folder.is_dir() or not any(folder.iterdir()):
            return "is missing"
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if self.digest is not None and _digest(folder) != self.digest:
                return "is not what the run recorded"
        values = [folder] if stored.is_sealed(folder) else stored.values(folder)
        return next((wrong for value in values if (wrong := stored.damage(value))), None)

    def fetch(self, folder: Path) -> str | None:
        """Copy the files into a folder, all or none; return None, or a description of why that is impossible."""
        if self.digest is None:
            return "was not recorded"
        aside = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(aside, ignore_errors=True)  # left by a killed process
        try:
            aside.mkdir(parents=True)
            source = self._copied(aside)
            if wrong := self.damage(source):
                return wrong
            for file in _files(source):
                target = folder / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
        except Exception as error:  # each kind of store has its own
            if disk_fault(error):
                raise
            return f"cannot be read ({one_line(error)})"
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return None

    def _copied(self, aside: Path) -> Path:
        """Copy the files into a folder, unchecked, and return the folder that has them."""
        own = self.store._folder(self.run_id)
        if own is None:
            return Path(self.store._client.download_artifacts(self.run_id, self.name, str(aside)))
        for file in _files(own / self.name):
            _link(file, aside / file.relative_to(own / self.name))
        return aside


def _files(folder: Path) -> list[Path]:
    """List the files that have checksums, after the checksums: a reader never finds a file without its own."""
    names = stored.checksums(folder)
    if strange := [name for name in names if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]:
        raise TrackingError(
            f"The checksums of {folder} name {strange[0]}, which is outside it: remove that folder; it is made anew."
        )
    sums = [stored.SUMS] if stored.is_sealed(folder) else [f"{name}.sha256" for name in names]
    return [folder / name for name in (*sums, *names)]


def _digest(folder: Path) -> str:
    return text_digest(*(f"{digest}  {name}" for name, digest in sorted(stored.checksums(folder).items())))


def _link(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(file, target)
