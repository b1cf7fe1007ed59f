"""Engines by the names that the command line takes."""

from plo.experiment.engines.engine import Engine, EngineError
from plo.experiment.engines.local import InProcess

NAMES = ("local", "ray")


def get_engine(name: str = "local", workers: int | None = None, address: str | None = None) -> Engine:
    """Return an engine.

    Args:
        name: "local" (this machine) or "ray" (a Ray cluster).
        workers: number of processes at a time. None is one for each GPU of this machine, or as many as a cluster has room
            for; without a GPU everything runs in the calling process.
        address: of a Ray cluster, such as "auto"; None starts one on this machine.

    Raises:
        EngineError: there is no such engine, or it cannot be used.
    """
    if name == "ray":
        from plo.experiment.engines.ray import RayCluster

        return RayCluster(address, workers)
    if name != "local":
        raise EngineError(f"There is no engine {name!r}: name one of {', '.join(NAMES)}.")
    if address is not None:
        raise EngineError(f"--address {address} is for the engine ray: add --engine ray, or leave it out.")
    import torch

    from plo.experiment.engines.pool import Pool

    devices = torch.cuda.device_count()
    workers = workers or max(1, devices)
    return Pool(workers, devices) if workers > 1 else InProcess()
