"""Plug-ins that a recorded comparison names: code is run because the user named or confirmed it, never because a store did.

Whoever can write to a shared store chooses what a recorded config.json names.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from plo.config import ConfigError
from plo.paths import content_digest
from plo.registry import load_plugin

DIGESTS = "plugin_sha256"  # key of the recorded config.json


def digests(plugins: Iterable[Path]) -> dict[str, str]:
    """{path as given: sha256 of the file}, recorded with a comparison."""
    return {str(plugin): content_digest(plugin.expanduser()) for plugin in plugins}


def load_recorded(
    plugins: Iterable[Path],
    recorded: Mapping[str, str],
    given: Iterable[Path] = (),
    confirm: Callable[[str], bool] | None = None,
) -> None:
    """Run the plug-ins that a recorded comparison names, as far as the user agrees.

    Args:
        recorded: what `digests` recorded; empty of a comparison that an earlier version recorded.
        given: files that the user named, and so agreed to. One with the recorded content stands for the recorded path.
        confirm: asks the user a question; None where nobody can be asked.

    Raises:
        ConfigError: a plug-in was neither named by the user, nor is as recorded and confirmed. Nothing of it was run.
    """
    given = [Path(file).expanduser().resolve() for file in given]
    contents = {content_digest(file) for file in given if file.is_file()}
    for plugin in plugins:
        file, digest = plugin.expanduser().resolve(), recorded.get(str(plugin))
        if file in given or (digest is not None and digest in contents):
            continue  # the command has run it
        remedy = f"If you trust it, name it yourself: --plugin {plugin}"
        if not file.is_file():
            raise ConfigError(f"The recorded comparison needs the plug-in {plugin}, which is not here: --plugin FILE.")
        if digest != content_digest(file):
            why = "was changed since" if digest else "was recorded without its hash"
            raise ConfigError(
                f"The plug-in {file}, which the recorded comparison names, {why}; it was not run. {remedy}"
            )
        if confirm is None or not confirm(f"The recorded comparison runs the file {file} (as it was then). Run it?"):
            raise ConfigError(f"The plug-in {file} is named by the recorded comparison alone; it was not run. {remedy}")
        load_plugin(file)
