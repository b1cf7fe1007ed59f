"""Where plo keeps what it can make again (models, statistics, artifacts), and what tells a file from another."""

import hashlib
import os
import re
from pathlib import Path


def plo_home() -> Path:
    """The cache folder: `$PLO_HOME`, or `~/.cache/plo` without it. It is made when it is not there."""
    home = Path(os.environ.get("PLO_HOME") or "~/.cache/plo").expanduser().resolve()
    home.mkdir(parents=True, exist_ok=True)
    return home


def slug(name: str) -> str:
    """Make a name that can be a folder's: no separators, no leading dot, at most 100 characters.

    Example:
        >>> slug("../../evil"), slug("dpo + 0.2*sft")
        ('evil', 'dpo-+-0.2-sft')
    """
    return re.sub(r"[^a-zA-Z0-9_.+-]+", "-", name)[:100].strip("-.") or "unnamed"


def content_digest(path: Path) -> str:
    """sha256 of a file's content; of a folder: of its files' names and contents, wherever it lies."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(path)} {content_digest(file)}\n".encode())
    return digest.hexdigest()
