"""Engine that runs units as tasks of a Ray cluster, an existing one or one that is started on this machine."""

import contextlib
import logging
import os
from dataclasses import asdict
from typing import Any

from plo import extras, interrupt
from plo.experiment.engines.engine import EngineError
from plo.experiment.engines.worker import Job, LineHandler, do, log, relog
from plo.experiment.runner import Advance
from plo.experiment.session import Session
from plo.experiment.units import Outcome, Unit

PASSED_ON = ("PLO_", "HF_", "MLFLOW_", "OPENAI_", "ATEN_", "ONEDNN_", "CUDA_MODULE_LOADING")  # environment of tasks


class RayCluster:
    """Engine with Ray tasks. Each takes one GPU, if the cluster has any, or else `cpus` cores.

    Args:
        address: of the cluster, such as "auto" or "ray://HOST:10001"; None starts one on this machine.
        workers: number of tasks at a time; None is as many as the cluster has room for.
        cpus: cores of a task.

    Raises:
        EngineError: Ray is not installed, or the cluster cannot be reached.
    """

    name = "ray"
    several = True

    def __init__(self, address: str | None = None, workers: int | None = None, cpus: int = 1):
        extras.require("ray", "The engine ray")
        import ray

        self._ray, self._workers = ray, workers
        passed = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        try:
            if not ray.is_initialized():
                ray.init(
                    address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False,
                    configure_logging=False, runtime_env={"env_vars": passed},
                )  # fmt: skip
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise EngineError(
                f"The Ray cluster {address or 'of this machine'} cannot be used: {error}. `ray status` shows it; start one with "
                f"`ray start --head`, or leave --address out to start one on this machine."
            ) from error
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        # Ray runs a task again whose worker or node is lost; the claim of the lost attempt is taken over.
        self._do = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=2)(_do)
        self._running: dict[Any, Unit] = {}

    def room(self) -> bool:
        """Return whether fewer tasks run than may run at a time; Ray itself lets the others wait."""
        return self._workers is None or len(self._running) < self._workers

    def submit(self, session: Session, unit: Unit, advance: Advance) -> None:
        """Hand a unit to the cluster. Its progress is known at its end."""
        self._running[self._do.remote(asdict(Job.of(session)), unit.to_dict())] = unit

    def collect(self, seconds: float) -> list[tuple[Unit, Outcome | None]]:
        """Return units that have ended, waiting at most `seconds` for one; without an outcome if the worker was lost."""
        with interrupt.awaiting(lambda: f"waiting for {len(self._running)} tasks to stop"):
            ended, _ = self._ray.wait(list(self._running), timeout=seconds)
        found: list[tuple[Unit, Outcome | None]] = []
        for reference in ended:
            unit = self._running.pop(reference)
            try:
                result = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                log.debug("%s", error)
                found.append((unit, None))
                continue
            for message in result["log"]:
                relog(*message)
            found.append((unit, Outcome(**result["outcome"])))
        return found

    def close(self, interrupted: bool = False) -> None:
        """Cancel the tasks that run, which are at their last checkpoint then, and leave the cluster."""
        for reference in self._running:
            with contextlib.suppress(Exception):
                self._ray.cancel(reference)
        if self._running:
            with contextlib.suppress(Exception):
                self._ray.wait(list(self._running), num_returns=len(self._running), timeout=30)
        self._ray.shutdown()


def _do(job: dict[str, str], unit: dict[str, Any]) -> dict[str, Any]:
    """Do a unit in a process of the cluster, and return its outcome and the messages of its log."""
    messages: list[tuple[int, str]] = []
    handler = LineHandler(lambda level, text: messages.append((level, text)))
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        outcome = do(Job(**job), Unit.from_dict(unit))
    finally:
        log.removeHandler(handler)
    return {"outcome": asdict(outcome), "log": messages}
