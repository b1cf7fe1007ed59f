"""Record the versions, the machine and the commit that a run was made with."""

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from plo.packages import packages

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


def circumstances() -> dict[str, Any]:
    """Return what a process computes with, as JSON values: packages, plo's commit, Python, and the hardware with its threads."""
    import torch

    from plo.borrowed import TORCH

    capability = TORCH.require("torch.backends.cpu", "get_cpu_capability").get_cpu_capability()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "packages": packages(),
        "plo": {"version": _version("plo"), "commit": plo_commit()},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hardware": {
            "cpu": _cpu(),
            "capability": capability,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": gpu,
        },
    }


def plo_commit() -> str | None:
    """Return the commit of plo's own code, "+dirty" if files were changed since; None for a release."""
    folder = Path(__file__).parent
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name):  # else the checkout is that of a user
        dirty = _git(folder, "status", "--porcelain", "--", ".")
        return _git(folder, "rev-parse", "HEAD") + ("+dirty" if dirty else "")
    try:
        address = importlib.metadata.distribution("plo").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    return json.loads(address or "{}").get("vcs_info", {}).get("commit_id")


def hub_revision(name: str, kind: str = "model") -> str | None:
    """Return the commit of a hub repository that this machine has; None for anything else.

    Args:
        kind: "model" or "dataset".
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(name).expanduser().exists():
        return None
    try:
        found = try_to_load_from_cache(name, "config.json" if kind == "model" else "README.md", repo_type=kind)
    except HFValidationError:  # no name of a repository
        return None
    return Path(found).parent.name if isinstance(found, str) else None


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
