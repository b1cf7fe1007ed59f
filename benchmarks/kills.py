"""A command that is killed at random moments and started again, compared with the same command undisturbed.

    python benchmarks/kills.py --kills 30 --seed 0 -- plo compare experiment.yaml
    python benchmarks/kills.py --kills 10 --signal INT -- plo compare experiment.yaml     # and how long it takes to end
    python benchmarks/kills.py --kills 30 --at-once 2 -- plo compare experiment.yaml      # two of them share the work

The command runs in a folder of its own, with a `PLO_HOME` and, unless it names another, a store of its own; `{folder}` in it
stands for that folder. Each kill meets the process that was started, or one of those that it started. Compared are the
leaderboard, every trained model, the verdicts of judges and the finished runs: one of each cell, stage, trial and evaluation.
The exit code is 1 if anything differs, a run is left open, or a process is left behind.
"""

import argparse
import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

from plo.leaderboards import read, to_json
from plo.paths import plo_home
from plo.tracking import Tracker
from plo.tracking.client import import_mlflow

MARK = "PLO_KILLS"  # environment variable by which processes that were left behind are found
ENDED = 60.0  # seconds in which processes that lost their driver have to end


@dataclass
class Kill:
    """One kill: when, in seconds after the start, and whom it met, with what the end of the driver was like."""

    moment: float
    victim: str
    finished: bool  # whether the command had nothing left to do
    seconds: float = 0.0  # until the driver ended
    code: int | None = None


@dataclass
class Result:
    """Table, models and runs that a command left in its store, without times."""

    table: dict[str, Any]
    models: dict[str, dict[str, Any]]
    finished: dict[str, int]
    left_open: list[str]
    verdicts: int
    kills: list[Kill] = field(default_factory=list)


class Place:
    """A folder in which a command runs."""

    def __init__(self, folder: Path, command: Sequence[str], store: str):
        self.folder, self.store = folder, store.replace("{folder}", str(folder))
        folder.mkdir(parents=True)
        (folder / "home").mkdir()
        if (models := plo_home() / "models").exists():  # the embedded model, converted
            (folder / "home" / "models").symlink_to(models)
        self.command = [argument.replace("{folder}", str(folder)) for argument in command]
        self.environment = os.environ | {"PLO_HOME": str(folder / "home"), MARK: str(folder)}
        self.log = (folder / "log.txt").open("a")

    def start(self) -> subprocess.Popen:
        """Start the command."""
        return subprocess.Popen(
            self.command,
            cwd=self.folder,
            env=self.environment,
            stdout=self.log,
            stderr=self.log,
            stdin=subprocess.DEVNULL,
        )

    def run(self) -> float:
        """Run the command to its end, and return the seconds that it took."""
        started = time.monotonic()
        if code := self.start().wait():
            raise SystemExit(f"{' '.join(self.command)} ended with {code}: see {self.folder / 'log.txt'}")
        return time.monotonic() - started

    def left_behind(self) -> list[psutil.Process]:
        """Return the processes of the command that still run."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def result(self, name: str | None) -> Result:
        """Return what the command left behind."""
        uri = self.store if "://" in self.store else f"sqlite:///{self.folder / self.store}"
        board = json.loads(to_json(read(Tracker(uri, create=False), name)))
        facts = ("verdict", "rank", "metrics", "differences")
        table = {row["variant"]: {fact: _untimed(row[fact]) for fact in facts} for row in board["rows"]}
        models = {
            f"{file.relative_to(self.folder)}": load_file(file)
            for file in sorted(self.folder.rglob("*.safetensors"))
            if (file.parent.name == "model" or file.name == "policy.safetensors") and "mlartifacts" not in file.parts
        }
        finished, left_open = Counter(), []
        for run in _runs(uri):
            tags = run.data.tags
            title = " ".join(filter(None, (tags.get("plo.kind"), run.info.run_name, tags.get("plo.cell", "")[:12])))
            if run.info.status == "FINISHED":
                finished[title] += 1
            elif run.info.status in ("RUNNING", "SCHEDULED"):
                left_open.append(title)
        verdicts = 0
        if (file := self.folder / "home" / "verdicts.db").exists():
            [(verdicts,)] = sqlite3.connect(file).execute("SELECT count(*) FROM verdicts").fetchall()
        return Result(table, models, dict(finished), left_open, verdicts)


def disturbed(place: Place, args: argparse.Namespace, quick: float, work: float) -> list[Kill]:
    """Start the command again and again, and kill it, until it was killed as often as is wanted.

    Args:
        quick: seconds that the command takes if everything is finished.
        work: seconds of work besides.
    """
    chance, kills, share = random.Random(args.seed), [], work / args.kills
    window = share + math.sqrt(
        share**2 + 2 * share * quick
    )  # so that about as many seconds of work fit between the kills
    number = getattr(signal, f"SIG{args.signal}")
    running: list[tuple[subprocess.Popen, float]] = []
    finished = False
    while len(kills) < args.kills:
        while len(running) < args.at_once:
            running.append((place.start(), time.monotonic()))
        driver, started = chance.choice(running)
        moment = started + chance.uniform(0, quick + window)
        if moment < time.monotonic():  # it has worked for a while, after another one was killed
            moment = time.monotonic() + chance.uniform(0, window)
        while time.monotonic() < moment and driver.poll() is None:
            time.sleep(0.02)
        if driver.poll() is None:
            family = psutil.Process(driver.pid).children(recursive=True)
            of_driver = not family or args.victim == "driver" or (args.victim == "any" and chance.random() < 0.5)
            victim = psutil.Process(driver.pid) if of_driver else chance.choice(family)
            kill = Kill(time.monotonic() - started, "driver" if of_driver else "child", finished)
            try:
                victim.send_signal(number)
            except psutil.NoSuchProcess:
                continue
            kills.append(kill)
            if of_driver:
                sent = time.monotonic()
                kill.code, kill.seconds = driver.wait(), time.monotonic() - sent
                print(
                    f"{len(kills):3} {kill.victim} after {kill.moment:.1f} s: {kill.code} within {kill.seconds:.1f} s",
                    flush=True,
                )
            else:
                print(f"{len(kills):3} {kill.victim} after {kill.moment:.1f} s", flush=True)
        for one in [*running]:
            if one[0].poll() is not None:
                finished = finished or one[0].returncode == 0
                running.remove(one)
    for driver, _ in running:
        driver.wait()
    return kills


def differences(expected: Result, found: Result, tolerance: float) -> list[str]:
    """Return what is different, as sentences."""
    said = []
    for name in sorted(expected.table.keys() | found.table.keys()):
        if (own := expected.table.get(name)) != (other := found.table.get(name)):
            said += [f"row {name}: {line}" for line in _unequal(own, other, tolerance)]
    for name in sorted(expected.models.keys() | found.models.keys()):
        ours, theirs = expected.models.get(name), found.models.get(name)
        if ours is None or theirs is None or ours.keys() != theirs.keys():
            said.append(f"model {name} is {'missing' if theirs is None else 'another one or new'}")
        elif (gap := max((float((ours[key] - theirs[key]).abs().max()) for key in ours), default=0.0)) > tolerance:
            said.append(f"model {name} differs by {gap:.3g}")
    for name in sorted(expected.finished.keys() | found.finished.keys()):
        counts = expected.finished.get(name, 0), found.finished.get(name, 0)
        if counts[0] != counts[1]:
            said.append(f"{name} is finished {counts[1]} times instead of {counts[0]}")
    said += [f"{name} is left open" for name in found.left_open]
    if expected.verdicts != found.verdicts:
        said.append(f"{found.verdicts} verdicts instead of {expected.verdicts}")
    return said


def _unequal(own: Any, other: Any, tolerance: float, path: str = "") -> list[str]:
    if isinstance(own, dict) and isinstance(other, dict):
        keys = sorted(own.keys() | other.keys())
        return [line for key in keys for line in _unequal(own.get(key), other.get(key), tolerance, f"{path}.{key}")]
    if isinstance(own, int | float) and isinstance(other, int | float):
        return [] if abs(own - other) <= tolerance * max(1.0, abs(own)) else [f"{path[1:]} is {other} instead of {own}"]
    return [] if own == other else [f"{path[1:]} is {other} instead of {own}"]


def _untimed(value: Any) -> Any:
    """Drop run ids, and values by run."""
    if isinstance(value, dict):
        return {name: _untimed(one) for name, one in value.items() if name not in ("runs", "baseline_runs", "values")}
    return value


def _runs(uri: str) -> list[Any]:
    client, runs, token = import_mlflow().MlflowClient(tracking_uri=uri), [], None
    experiments = [one.experiment_id for one in client.search_experiments(filter_string="name = 'plo'")]
    while True:
        page = client.search_runs(experiments, max_results=1000, page_token=token)
        runs, token = [*runs, *page], page.token
        if not token:
            return runs


def main() -> int:
    args = arguments()
    folder = Path(args.folder or tempfile.mkdtemp(prefix="kills-"))
    calm, wild = (Place(folder / name, args.command, args.store) for name in ("undisturbed", "killed"))
    whole = calm.run()
    quick = calm.run()
    print(f"undisturbed: {whole:.1f} s; with everything finished: {quick:.1f} s", flush=True)
    started = time.monotonic()
    kills = disturbed(wild, args, quick, max(1.0, whole - quick))
    wild.run()
    seconds = time.monotonic() - started
    deadline = time.monotonic() + ENDED
    while (orphans := wild.left_behind()) and time.monotonic() < deadline:
        time.sleep(0.2)
    expected, found = calm.result(args.name), wild.result(args.name)
    said = differences(expected, found, args.tolerance)
    said += [f"process {orphan.pid} is left behind" for orphan in orphans]
    summary = {
        "kills": len(kills), "of_children": sum(kill.victim == "child" for kill in kills),
        "before_all_was_finished": sum(not kill.finished for kill in kills), "seconds": round(seconds, 1),
        "longest_end": round(max((kill.seconds for kill in kills), default=0.0), 1), "rows": len(found.table),
        "models": len(found.models), "finished_runs": sum(found.finished.values()), "verdicts": found.verdicts,
        "differences": said, "folder": str(folder),
    }  # fmt: skip
    if args.json:
        summary["each"] = [asdict(kill) for kill in kills]
    print(json.dumps(summary, indent=1))
    return 1 if said else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="number of kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of moments and victims")
    parser.add_argument("--victim", choices=("any", "driver", "child"), default="any", help="process that is killed")
    parser.add_argument("--signal", choices=("KILL", "INT", "TERM", "USR1"), default="KILL", help="signal that is sent")
    parser.add_argument("--at-once", type=int, default=1, help="number of processes of the command that run at once")
    parser.add_argument("--store", default="plo.db", help="store of the command: a file in its folder, or an address")
    parser.add_argument("--name", help="comparison to compare (default: all)")
    parser.add_argument("--tolerance", type=float, default=0.0, help="difference of numbers that is none")
    parser.add_argument("--folder", help="new folder to work in (default: a temporary one, which stays)")
    parser.add_argument("--json", action="store_true", help="add a record of every kill")
    parser.add_argument("command", nargs="+", help="command after --, such as plo compare experiment.yaml")
    args = parser.parse_args()
    if args.command[0] == "plo":
        args.command[:1] = [sys.executable, "-m", "plo"]
    args.command = [str(Path(part).absolute()) if Path(part).is_file() else part for part in args.command]
    return args


if __name__ == "__main__":
    sys.exit(main())
