"""The packages that are installed, with their versions."""

import importlib.metadata
import re


def packages() -> dict[str, str]:
    """Return {name: version} of every installed distribution, in order of their names."""
    found = {}
    for one in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", one.metadata["Name"] or "").lower()
        found.setdefault(name, one.version)  # the first one on the path is the one that is imported
    return dict(sorted(found.items()))
