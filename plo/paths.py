"""Where plo keeps what it can make again: models, statistics, artifacts."""

import os
from pathlib import Path


def plo_home() -> Path:
    """The cache folder: `$PLO_HOME`, or `~/.cache/plo` without it. It is made when it is not there."""
    home = Path(os.environ.get("PLO_HOME") or "~/.cache/plo").expanduser().resolve()
    home.mkdir(parents=True, exist_ok=True)
    return home
