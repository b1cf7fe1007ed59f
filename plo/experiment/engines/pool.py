"""Engine that runs units in several worker processes of this machine, one for each device or a given number."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from dataclasses import asdict

from plo import interrupt
from plo.experiment.engines.worker import Job, relog
from plo.experiment.runner import Advance
from plo.experiment.session import Session
from plo.experiment.units import Outcome, Unit

PATIENCE = 120.0  # seconds that workers have to write their checkpoints when they are asked to end


class Pool:
    """Engine with worker processes on this machine.

    Args:
        workers: number of processes.
        devices: number of GPUs, which the workers share out; 0 leaves them to the CPU, whose cores they share out.
    """

    name = "local"
    several = True

    def __init__(self, workers: int, devices: int = 0):
        self._environments = [_environment(place, workers, devices) for place in range(workers)]
        self._workers: list[_Worker | None] = [None] * workers
        self._ended: queue.SimpleQueue[tuple[_Worker, Outcome | None]] = queue.SimpleQueue()

    def room(self) -> bool:
        """Return whether a worker has nothing to do."""
        return any(worker is None or worker.unit is None for worker in self._workers)

    def submit(self, session: Session, unit: Unit, advance: Advance) -> None:
        """Hand a unit to a worker that has nothing to do; it is started if it does not run."""
        place = next(i for i, worker in enumerate(self._workers) if worker is None or worker.unit is None)
        worker = self._workers[place]
        if worker is None:
            worker = self._workers[place] = _Worker(Job.of(session), self._environments[place], self._ended)
        worker.do(unit, advance)

    def collect(self, seconds: float) -> list[tuple[Unit, Outcome | None]]:
        """Return units that have ended, waiting at most `seconds` for one; without an outcome if the worker was lost."""
        busy = sum(worker is not None and worker.unit is not None for worker in self._workers)
        try:
            with interrupt.awaiting(f"waiting for the checkpoints of {busy} workers"):
                worker, outcome = self._ended.get(timeout=seconds)
        except queue.Empty:
            return []
        if outcome is None:
            self._workers = [None if one is worker else one for one in self._workers]
        unit, worker.unit = worker.unit, None
        return [(unit, outcome)] if unit is not None else []

    def close(self, interrupted: bool = False) -> None:
        """End the workers; if `interrupted`, once they have written their checkpoints."""
        workers = [worker for worker in self._workers if worker is not None]
        for worker in workers:
            worker.end(interrupted)
        deadline = time.monotonic() + PATIENCE
        for worker in workers:
            try:
                worker.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
        self._workers = [None] * len(self._workers)


class _Worker:
    """A process of a pool, and the thread that reads its messages."""

    def __init__(
        self, job: Job, environment: dict[str, str], ended: "queue.SimpleQueue[tuple[_Worker, Outcome | None]]"
    ):
        # A session of its own: Ctrl-C in a terminal goes to the process that started it alone, which passes it on.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "plo.experiment.engines.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True,
        )  # fmt: skip
        self.unit: Unit | None = None
        self._advance: Advance = lambda units, steps=0: None
        self._ended = ended
        self._send(json.dumps(asdict(job)))
        threading.Thread(target=self._read, daemon=True, name="plo-worker").start()

    def do(self, unit: Unit, advance: Advance) -> None:
        """Let the process do a unit."""
        self.unit, self._advance = unit, advance
        self._send(json.dumps(unit.to_dict()))

    def end(self, interrupted: bool) -> None:
        """Ask the process to end: at its next checkpoint if `interrupted`, else at once, as it has nothing to do."""
        if interrupted:
            self.process.terminate()
        elif self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def _send(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # the process is lost: the reader learns it too
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            if "log" in message:
                relog(*message["log"])
            elif "advance" in message:
                self._advance(*message["advance"])
            elif "outcome" in message:
                self._ended.put((self, Outcome(**message["outcome"])))
        self.process.wait()  # so that no zombie is left
        self._ended.put((self, None))


def _environment(place: int, workers: int, devices: int) -> dict[str, str]:
    """Return the environment of a worker: its GPU, or its share of the cores."""
    environment = dict(os.environ)
    if devices:
        seen = environment.get("CUDA_VISIBLE_DEVICES")
        names = seen.split(",") if seen else [str(number) for number in range(devices)]
        environment["CUDA_VISIBLE_DEVICES"] = names[place % len(names)]
    else:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    return environment
