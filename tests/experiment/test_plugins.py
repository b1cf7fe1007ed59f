"""A store names a file to run: it is run where the user named it, or confirmed it as it was recorded."""

import pytest

from plo.config import ConfigError
from plo.experiment.plugins import digests, load_recorded


@pytest.fixture
def plugin(tmp_path):
    """A plug-in that leaves a trace when it is run."""
    file = tmp_path / "evil.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    return file


def ran(plugin):
    return (plugin.parent / "ran").exists()


def test_what_a_store_names_is_not_run_where_nobody_is_asked(plugin):
    for recorded in ({}, digests([plugin]), {str(plugin): "0" * 64}):
        with pytest.raises(ConfigError, match=rf"{plugin}.* not run.*--plugin {plugin}"):
            load_recorded([plugin], recorded)
    assert not ran(plugin)


def test_what_is_as_recorded_is_run_when_the_user_says_so(plugin):
    asked = []
    with pytest.raises(ConfigError, match="not run"):
        load_recorded([plugin], digests([plugin]), confirm=lambda question: asked.append(question) or False)
    assert str(plugin) in asked[0] and not ran(plugin)
    load_recorded([plugin], digests([plugin]), confirm=lambda question: True)
    assert ran(plugin)


def test_what_was_changed_is_not_even_asked_about(plugin):
    recorded = digests([plugin])
    plugin.write_text(plugin.read_text() + "\n# changed\n")
    for known, why in ((recorded, "has changed since"), ({}, "without its hash")):
        with pytest.raises(ConfigError, match=why):
            load_recorded([plugin], known, confirm=lambda question: True)
    assert not ran(plugin)


def test_what_the_user_named_was_run_by_the_command(plugin, tmp_path):
    copy = tmp_path / "copy.py"
    copy.write_text(plugin.read_text())
    load_recorded([plugin], {}, given=[plugin])
    load_recorded([tmp_path / "elsewhere.py"], {str(tmp_path / "elsewhere.py"): digests([plugin])[str(plugin)]}, [copy])
    with pytest.raises(ConfigError, match=r"elsewhere\.py, which does not exist here: give it with --plugin FILE"):
        load_recorded([tmp_path / "elsewhere.py"], {})
    assert not ran(plugin)
