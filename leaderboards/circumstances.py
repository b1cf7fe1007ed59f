"""Differences between two manifests in how they were made: packages, code, hardware, settings, data, judges."""

from collections.abc import Iterator, Mapping
from typing import Any

from plo.leaderboards.manifest import ABSENT
from plo.values import LOCAL, without_paths

Manifest = Mapping[str, Any]
HARDWARE = ("cpu", "capability", "cores", "threads", "gpu")


def circumstances(a: Manifest, b: Manifest) -> list[str]:
    """Return sentences on packages, plo's commit, hardware, code of losses, settings and judges in which two manifests differ."""
    return [*_packages(a, b), *_machines(a, b), *code(a, b), *settings(a, b), *_judges(a, b)]


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over the values in nested mappings, as ("train.lr", 0.1)."""
    if isinstance(value, Mapping) and value:
        for key, one in value.items():
            yield from flat(one, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _of_runs(manifest: Manifest, *path: str) -> list[str]:
    """Return the different values of a fact in the records of a manifest, as texts."""
    found = set()
    for made in manifest["made_with"].values():
        value: Any = made
        for name in path:
            value = value.get(name, ABSENT) if isinstance(value, Mapping) else ABSENT
        found.add("none" if value is None else str(value))
    return sorted(found)


def _packages(a: Manifest, b: Manifest) -> Iterator[str]:
    ours, theirs = ({name for made in m["made_with"].values() for name in made["packages"]} for m in (a, b))
    for name in sorted(ours | theirs):
        before, after = (_of_runs(m, "packages", name) for m in (a, b))
        if before != after:
            yield f"package {name}: {_said(before, 'none')} -> {_said(after, 'none')}"
    for manifest, which in ((a, "first"), (b, "second")):
        if any("packages_are" in made for made in manifest["made_with"].values()):
            yield f"packages of the {which}: its runs recorded few; the others are those of the machine that wrote the manifest"


def _machines(a: Manifest, b: Manifest) -> Iterator[str]:
    paths = [("plo", "version"), ("plo", "commit"), ("python",), ("platform",)]
    paths += [("hardware", name) for name in HARDWARE]
    paths += [
        ("engine",),
        ("processes",),
        ("model", "revision"),
        ("model", "dtype"),
        ("model", "device"),
        ("data", "revision"),
    ]
    for path in paths:
        before, after = (_of_runs(m, *path) for m in (a, b))
        if before != after:
            yield f"{' '.join(path)}: {_said(before)} -> {_said(after)}"


def code(a: Manifest, b: Manifest) -> Iterator[str]:
    """Iterate over sentences on variants that both have, and whose code or hyper-parameters differ."""
    ours, theirs = ({cell["variant"]: cell["code"] for cell in m["cells"]} for m in (a, b))
    for variant in sorted(ours.keys() & theirs.keys()):
        if ours[variant] != theirs[variant] and ABSENT not in (ours[variant], theirs[variant]):
            yield (
                f"code of {variant}: {ours[variant]} -> {theirs[variant]} (its loss, its token scorer, what they call, or their "
                f"hyper-parameters)"
            )


def settings(a: Manifest, b: Manifest) -> Iterator[str]:
    """Iterate over sentences on settings of the experiments, and plug-ins, that differ."""
    ours, theirs = (dict(flat(m["comparisons"][0]["settings"])) for m in (a, b) if m["comparisons"])
    for name in sorted(ours.keys() | theirs.keys()):
        before, after = ours.get(name, "default"), theirs.get(name, "default")
        is_local = any(LOCAL in without_paths(str(value)) for value in (before, after))
        if before != after and name not in ("name", "plugins") and not is_local:  # of files the content counts
            yield f"setting {name}: {before} -> {after}"
    plugins = [{d for one in m["comparisons"] for d in one["plugins"].values()} for m in (a, b)]
    if plugins[0] != plugins[1]:
        yield f"plug-ins: {_said([d[:16] for d in plugins[0]], 'none')} -> {_said([d[:16] for d in plugins[1]], 'none')}"


def _judges(a: Manifest, b: Manifest) -> Iterator[str]:
    ours, theirs = ({_judge(one) for one in m["judges"]} for m in (a, b))
    if ours != theirs:
        yield f"judges: {_said(ours - theirs, 'none')} -> {_said(theirs - ours, 'none')}"


def _judge(one: Mapping[str, Any]) -> str:
    prompt = f" with the prompt {one['prompt']}" if one["prompt"] else ""  # a function or a reward has none
    return f"{one['judge']} version {str(one['version'])[:12]}{prompt} in {one['evaluation']}"


def _said(values: Any, nothing: str = ABSENT) -> str:
    return ", ".join(nothing if value == ABSENT else value for value in sorted(values)) or nothing
