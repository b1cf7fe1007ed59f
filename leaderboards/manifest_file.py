"""Reading a manifest back, from a file of its own or from a page in which it is embedded."""

import json
from collections.abc import Collection, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from plo.errors import reason
from plo.leaderboards.checks import LeaderboardError
from plo.leaderboards.circumstances import flat
from plo.leaderboards.manifest import OF_THE_MACHINE, VERSION
from plo.leaderboards.packed import unpack
from plo.paths import content_digest
from plo.values import LOCAL

ELEMENT = "plo-manifest"  # id of the script element of a page


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest in a file that `plo leaderboard` wrote: a page, or manifest.json.

    Raises:
        LeaderboardError: there is no such file, or it has no manifest of a version that can be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LeaderboardError(
            f"{path} cannot be read: {reason(error)}. Give a page or a manifest.json of plo."
        ) from error
    if text.lstrip()[:1] == "<":
        reader = _Reader()
        reader.feed(text)
        if not reader.found:
            raise LeaderboardError(
                f"{path} has no manifest: it is no page of plo, or of an early version. Write it again: plo leaderboard NAME "
                f"--html {path.name}"
            )
        text = reader.found
    elif text.lstrip()[:1] not in ("{", "["):
        raise LeaderboardError(
            f"{path} is neither a page nor a manifest of plo: give what plo leaderboard wrote with --html or --manifest."
        )
    try:
        manifest = json.loads(text if text.lstrip()[:1] in ("{", "[") else unpack(text))  # early pages had it as JSON
    except ValueError as error:
        raise LeaderboardError(f"The manifest in {path} is damaged: {error}. Take another copy of the file.") from error
    version = manifest.get("plo_manifest") if isinstance(manifest, dict) else None
    if not isinstance(version, int):
        raise LeaderboardError(
            f"{path} is no manifest of plo: `plo_manifest` is missing. Give manifest.json or a page."
        )
    if version > VERSION:
        raise LeaderboardError(
            f"{path} has a manifest of version {version}, and this plo reads up to {VERSION}: install a newer one."
        )
    return manifest


def runnable(manifest: Mapping[str, Any], path: Path, given: Sequence[Path] = ()) -> tuple[dict[str, Any], list[Path]]:
    """Return the settings of a manifest's comparison, and the plug-ins to run it with, which the user named.

    Args:
        path: file that the manifest is from, for messages.
        given: files that the user named; their code may run, and no other.

    Raises:
        LeaderboardError: the manifest is not of one comparison that plo trained, or a plug-in is not given.
    """
    comparisons = manifest["comparisons"]
    if len(comparisons) != 1:
        names = ", ".join(one["name"] for one in comparisons) or "none"
        raise LeaderboardError(
            f"{path} is of {len(comparisons)} comparisons ({names}), and one is run again at a time: write a manifest of one, "
            f"plo leaderboard NAME --manifest"
        )
    (one,) = comparisons
    if not one["settings"].get("losses"):
        raise LeaderboardError(
            f"{path}: {one['name']} holds models that plo did not train, so there is nothing to run again. Evaluate them "
            f"with plo eval, and compare: plo leaderboard diff A B"
        )
    contents = {content_digest(file.expanduser()) for file in given if file.expanduser().is_file()}
    lacking = [name for name, digest in one["plugins"].items() if digest not in contents]
    if len(lacking) > max(0, len(given) - len(contents & {*one["plugins"].values()})):
        wanted = "; ".join(f"{name} (sha256 {one['plugins'][name][:12]})" for name in lacking)
        raise LeaderboardError(
            f"{path}: {one['name']} needs the plug-in {wanted}. Code is never taken from a manifest: get the file, read it, and "
            f"name it with --plugin FILE. The store of the comparison has a copy, as plugin-SHA256.py among its files."
        )
    # The store of the page is ignored: a page of someone else could write into any store, or send the runs to its owner.
    settings = {name: value for name, value in one["settings"].items() if name not in OF_THE_MACHINE}
    return settings, [*given]


def check_local(settings: Mapping[str, Any], given: Collection[str], path: Path) -> None:
    """Refuse settings of a manifest that name files of the machine where it was made, unless the user gave others.

    Args:
        given: names of the settings that the user gave.
        path: file that the manifest is from, for the message.

    Raises:
        LeaderboardError: files are not given. The message names the settings.
    """
    lacking = {
        name: str(value)
        for name, value in flat({name: value for name, value in settings.items() if name != "plugins"})
        if LOCAL in str(value) and not any(name == one or name.startswith(f"{one}.") for one in given)
    }
    if lacking:
        was = "; ".join(f"{name}={value}" for name, value in lacking.items())
        raise LeaderboardError(
            f"{path} was made with files of its machine, which it does not hold: {was}. Name them here, such as "
            f"{next(iter(lacking))}=VALUE; their contents are compared with those of the manifest."
        )


class _Reader(HTMLParser):
    """Finds the text of the page's manifest."""

    def __init__(self) -> None:
        super().__init__()
        self.found, self._inside = "", False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "script" and ("id", ELEMENT) in attrs

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = False
