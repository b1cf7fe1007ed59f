"""The folder of plo's caches, names of folders, and digests of texts and files."""

import hashlib
import os
import re
from pathlib import Path


def plo_home() -> Path:
    """Return the folder of all caches, `$PLO_HOME` or else `~/.cache/plo`. It is created if it is missing."""
    home = Path(os.environ.get("PLO_HOME") or "~/.cache/plo").expanduser().resolve()
    home.mkdir(parents=True, exist_ok=True)
    return home


def slug(name: str) -> str:
    """Return a name that a folder can have: no separators, no leading dot, at most 100 characters.

    Example:
        >>> slug("../../evil"), slug("dpo + 0.2*sft")
        ('evil', 'dpo-+-0.2-sft')
    """
    return re.sub(r"[^a-zA-Z0-9_.+-]+", "-", name)[:100].strip("-.") or "unnamed"


def text_digest(*texts: str) -> str:
    """Return the sha256 of texts, joined by line feeds."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def content_digest(path: Path) -> str:
    """Return the sha256 of a file's content, or of the names and contents of a folder's files, wherever the folder is.

    Files in `.git` do not count: git changes them although nothing that the folder holds has changed.
    """
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        if ".git" in file.relative_to(path).parts:
            continue
        digest.update(f"{file.relative_to(path)} {content_digest(file)}\n".encode())
    return digest.hexdigest()
