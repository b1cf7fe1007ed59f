"""Plug-ins of a recorded comparison. Their code runs only if the user named or confirmed it, never because a store names it.

Anyone who can write to a shared store chooses what a recorded config.json names.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from plo.config import ConfigError
from plo.paths import content_digest
from plo.registry import load_plugin

DIGESTS = "plugin_sha256"  # key in the recorded config.json


def digests(plugins: Iterable[Path]) -> dict[str, str]:
    """Return {path as given: sha256 of the file}, which is recorded with a comparison."""
    return {str(plugin): content_digest(plugin.expanduser()) for plugin in plugins}


def load_recorded(
    plugins: Iterable[Path],
    recorded: Mapping[str, str],
    given: Iterable[Path] = (),
    confirm: Callable[[str], bool] | None = None,
) -> None:
    """Run the plug-ins that a recorded comparison names, as far as the user agrees.

    Args:
        recorded: result of `digests` at the time; empty for comparisons of earlier versions of plo.
        given: files that the user named and thus agreed to. A file with the recorded content replaces the recorded path.
        confirm: function that asks the user a question; None if there is nobody to ask.

    Raises:
        ConfigError: the user neither named nor confirmed a plug-in, or it has changed. None of its code was run.
    """
    given = [Path(file).expanduser().resolve() for file in given]
    contents = {content_digest(file) for file in given if file.is_file()}
    for plugin in plugins:
        file, digest = plugin.expanduser().resolve(), recorded.get(str(plugin))
        if file in given or (digest is not None and digest in contents):
            continue  # the command has run it
        if not file.is_file():
            raise ConfigError(
                f"The recorded comparison needs the plug-in {plugin}, which does not exist here: give it with --plugin FILE."
            )
        if digest != content_digest(file):
            why = "has changed since" if digest else "was recorded without its hash"
        elif confirm and confirm(f"The recorded comparison runs the file {file}, which has not changed since. Run it?"):
            load_plugin(file)
            continue
        else:
            why = "was not confirmed"
        raise ConfigError(
            f"The plug-in {file}, which the recorded comparison names, {why}; it was not run. If you trust it, name it "
            f"yourself: --plugin {plugin}"
        )
