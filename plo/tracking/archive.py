"""Archives of comparisons: a zip file with the runs of a comparison, their files, and the sha256 of every member."""

import contextlib
import json
import math
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from plo import store as stored
from plo.errors import reason
from plo.tracking.borrowed import CONTEXT
from plo.tracking.client import TrackingError
from plo.tracking.reading import EXPERIMENT, Comparison
from plo.tracking.store import Store
from plo.values import without_credentials

FORM = 1  # of the archive
INDEX, SUMS = "archive.json", "SHA256SUMS"
IMPORTED = "plo.imported"  # tag of an imported run: its id in the store that it was exported from
SETTINGS = ("config.json", EXPERIMENT)  # files of a comparison with the address of its store, which may have a password
EPOCH = (1980, 1, 1, 0, 0, 0)  # the time of every member, so that equal records give equal archives
# What zipfile raises for altered bytes, by where they are: RuntimeError where they seem to ask for a password.
UNREADABLE = (
    KeyError,
    ValueError,
    OSError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
)
MEMBER = re.compile(rf"({re.escape(INDEX)}|{SUMS}|runs/[0-9a-f]{{32}}\.json|files/[0-9a-f]{{32}}/.+)")


def export(comparison: Comparison, path: Path) -> dict[str, Any]:
    """Write a comparison's runs, with those of the stages and judges that its cells used, to an archive; return its index.

    It has parameters, tags, every point of every metric, data set inputs, files, and the attempts that failed. Nothing is left out
    but the names and passwords in addresses, such as that of the store.
    """
    store = comparison._tracker
    ids = _runs(comparison)
    index = {
        "plo_archive": FORM,
        "name": comparison.name,
        "key": comparison.key,
        "comparison": comparison.run_id,
        "runs": ids,
    }

    def write(aside: Path) -> None:
        sums: dict[str, str] = {}
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:

            def add(name: str, content: bytes) -> None:
                sums[name] = sha256(content).hexdigest()
                archive.writestr(zipfile.ZipInfo(name, EPOCH), content, zipfile.ZIP_DEFLATED)

            add(INDEX, _json(index))
            for run_id in ids:
                add(f"runs/{run_id}.json", _json(_record(store, run_id)))
                with _files(store, run_id) as folder:
                    for file in sorted(one for one in folder.rglob("*") if one.is_file()):
                        content, name = file.read_bytes(), file.relative_to(folder).as_posix()
                        if name in SETTINGS:
                            content = without_credentials(content.decode("utf-8")).encode()
                        add(f"files/{run_id}/{name}", content)
            lines = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
            archive.writestr(zipfile.ZipInfo(SUMS, EPOCH), lines, zipfile.ZIP_DEFLATED)

    stored.write(path, write)
    return index


@dataclass(frozen=True)
class Archive:
    """An archive whose members were all found to be as they were written.

    Attributes:
        index: its `name`, `key`, the run id of the `comparison`, and the ids of all `runs`.
    """

    index: dict[str, Any]
    _zip: zipfile.ZipFile
    _names: tuple[str, ...]

    def run(self, run_id: str) -> dict[str, Any]:
        """Return the record of a run: status, times, tags, params, metrics and inputs."""
        return json.loads(self._zip.read(f"runs/{run_id}.json"))

    def files(self, run_id: str) -> Iterator[tuple[PurePosixPath, bytes]]:
        """Iterate over the files of a run, as their path in its folder and their content."""
        prefix = f"files/{run_id}/"
        for name in self._names:
            if name.startswith(prefix):
                yield PurePosixPath(name.removeprefix(prefix)), self._zip.read(name)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open an archive, having checked every member against its sha256.

    Raises:
        TrackingError: it is no archive of plo, is damaged, or has a member whose path leads out of it.
    """
    try:
        file = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise TrackingError(
            f"{path} cannot be read as an archive of plo export: {reason(error)}. Take another copy."
        ) from error
    with file:
        names = file.namelist()
        for name in names:
            parts = PurePosixPath(name).parts
            if not MEMBER.fullmatch(name) or "\\" in name or ".." in parts or "" in name.split("/"):
                raise TrackingError(
                    f"{path} has the member {name[:200]!r}, which no archive of plo has: nothing of it was imported. Do not "
                    f"trust where it comes from."
                )
        try:
            sums = dict(line.split("  ", 1)[::-1] for line in file.read(SUMS).decode().splitlines())
            wrong = next((name for name in names if name != SUMS and _digest(file, name) != sums.get(name)), None)
            lacking = next((name for name in (*sums, INDEX) if name not in names), None)
            if len(set(names)) < len(names) or wrong or lacking:
                fault = f"{wrong} is not as it was written" if wrong else f"{lacking or 'a member'} is lacking"
                raise TrackingError(f"{path} is damaged ({fault}): nothing of it was imported. Take another copy.")
            index = json.loads(file.read(INDEX))
            form = index["plo_archive"]
        except UNREADABLE as error:
            raise TrackingError(
                f"{path} is damaged ({error}): nothing of it was imported. Take another copy."
            ) from error
        if form != FORM:
            raise TrackingError(
                f"{path} is an archive of form {form}, and this plo reads form {FORM}: install another plo."
            )
        yield Archive(index, file, tuple(names))


def _runs(comparison: Comparison) -> list[str]:
    """Return the ids of a comparison's runs: its own last, those that it needs first, otherwise oldest first."""
    store = comparison._tracker
    children = store._search(parent=comparison.run_id)
    keys = {key for run in children for key in json.loads(run.tags.get("plo.stages", "[]"))}
    stages = [run for run in store._search(kind="stage") if run.tags["plo.cell"] in keys]
    judged = {
        (judge["judge"], judge["version"])
        for cell in comparison.cells()
        for finding in cell.findings
        for judge in _judges(finding)
    }
    judges = [
        run for run in store._search(kind="judge") if (run.tags["plo.judge"], run.tags["plo.judge_version"]) in judged
    ]
    found = dict.fromkeys(run.run_id for runs in (judges, stages, children) for run in reversed(runs))
    return [*found, comparison.run_id]


def _judges(finding: Any) -> list[dict[str, Any]]:
    try:
        return finding.about["judges"]
    except TrackingError:  # recorded by an earlier version, without this file
        return []


def _record(store: Store, run_id: str) -> dict[str, Any]:
    run = store._client.get_run(run_id)
    inputs = [
        {
            "name": one.dataset.name,
            "digest": one.dataset.digest,
            "source_type": one.dataset.source_type,
            "source": one.dataset.source,
            "context": next((tag.value for tag in one.tags if tag.key == CONTEXT), None),
        }
        for one in (run.inputs.dataset_inputs if run.inputs else ())
    ]
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "start_time": run.info.start_time,
        "end_time": run.info.end_time,
        "tags": dict(sorted((name, text) for name, text in run.data.tags.items() if name != IMPORTED)),
        "params": {name: without_credentials(value) for name, value in sorted(run.data.params.items())},
        "metrics": [
            [name, _text(value), *when] for name, value, *when in store._reader.points(run_id, run.data.metrics)
        ],
        "inputs": sorted(inputs, key=lambda one: (one["name"], one["digest"])),
    }


@contextlib.contextmanager
def _files(store: Store, run_id: str) -> Iterator[Path]:
    """Yield the folder of a run's files, or a copy that is removed afterwards."""
    if (own := store._folder(run_id)) is not None:
        yield own
        return
    with tempfile.TemporaryDirectory() as aside:
        for one in store._client.list_artifacts(run_id):
            store._client.download_artifacts(run_id, one.path, aside)
        yield Path(aside)


def _text(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _digest(file: zipfile.ZipFile, name: str) -> str:
    digest = sha256()
    with file.open(name) as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
