"""Record the versions, the machine and the commit that a run was made with."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGES = ("plo", "torch", "transformers", "trl", "peft", "mlflow")


def environment(folder: str | Path = ".") -> dict[str, str]:
    """Return flat tags `plo.version.<package>`, `plo.python`, `plo.platform`, `plo.cpu`, `plo.gpu` and `plo.git`.

    `plo.git` is the commit of `folder`'s checkout, with "+dirty" if files were changed or added since. It is absent
    without a commit, as `plo.gpu` is without a GPU.
    """
    tags = {f"plo.version.{name}": version for name in PACKAGES if (version := _version(name))}
    tags |= {"plo.python": platform.python_version(), "plo.platform": platform.platform(), "plo.cpu": _cpu()}
    import torch

    if torch.cuda.is_available():
        tags["plo.gpu"] = torch.cuda.get_device_name()
    if commit := _git(folder, "rev-parse", "--verify", "HEAD"):
        tags["plo.git"] = commit + ("+dirty" if _git(folder, "status", "--porcelain") else "")
    return tags


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """Return the CPU's name from Linux, or else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _git(folder: str | Path, *command: str) -> str:
    try:
        done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
