"""Losses from files and from installed packages: loaded, found by other processes, and what goes wrong by name."""

import importlib.metadata
import multiprocessing
import os
import pickle
import subprocess
import sys
import types

import pytest
import torch

from plo.losses import (
    LOSSES,
    get_loss,
)
from plo.losses.dpo import dpo
from plo.registry import Registry, RegistryError, load_plugin
from plo.verify.inputs import make_pairs, make_statistics

PLUGIN = """
from plo.losses import register_generator, register_loss

@register_generator("cubic")
def cubic(R):
    return R**3

@register_loss("margin_only", needs=("ref_logps", "column:gap"))
def margin_only(pairs, *, scale: float = 1.0):
    return -scale * pairs.log_ratio_margin() * pairs.columns["gap"]
"""
PAIRS = make_pairs(make_statistics(("ref_logps", "kl_ref_pi")), ("ref_logps", "column:gap"))


def test_load_plugin(tmp_path):
    path = tmp_path / "my_loss.py"
    path.write_text(PLUGIN)
    load_plugin(path)
    load_plugin(path)  # the second time does nothing, instead of registering twice
    expected = -2 * PAIRS.log_ratio_margin() * PAIRS.columns["gap"]
    torch.testing.assert_close(get_loss("margin_only", scale=2)(PAIRS), expected)
    assert LOSSES["margin_only"].origin == f"{path}:8"
    assert get_loss("bpo", generator="cubic")(PAIRS).shape == (4,)


def _name_of(loss):
    return loss.name


def test_what_a_plugin_defines_can_be_pickled_to_another_process(tmp_path):
    """Strings are hashed anew in each process: the module's name may not depend on that."""
    path = tmp_path / "my-loss.v2.py"  # no identifier
    path.write_text(PLUGIN)
    module = load_plugin(path)
    (tmp_path / "value.pickle").write_bytes(pickle.dumps([module.margin_only, get_loss("margin_only", scale=2)]))
    code = "import pickle, sys, plo.registry as r; path, own = sys.argv[1:]; own and r.load_plugin(own)\n"
    code += "plain, loss = pickle.load(open(path, 'rb')); print(plain.__name__, loss.name, plain is loss.target)"
    for environment, own in (({"PLO_PLUGINS": os.environ["PLO_PLUGINS"]}, ""), ({"PLO_PLUGINS": ""}, str(path))):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "value.pickle"), own],
            env={**os.environ, "PYTHONHASHSEED": "1", **environment},
            capture_output=True,
            text=True,
        )
        assert done.stdout == "margin_only margin_only(scale=2) True\n", done.stderr
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_name_of, [get_loss("margin_only", scale=2)]) == "margin_only(scale=2)"


def test_load_plugin_failures(tmp_path):
    with pytest.raises(RegistryError, match=r"nowhere.py does not exist"):
        load_plugin(tmp_path / "nowhere.py")
    path = tmp_path / "broken.py"
    path.write_text("1 / 0")
    with pytest.raises(RegistryError, match=r"broken.py failed: ZeroDivisionError"):
        load_plugin(path)


@pytest.fixture
def installed(monkeypatch):
    """Entry points as an installed package would declare them."""

    def declare(group, **targets):
        points = [importlib.metadata.EntryPoint(name, value, group) for name, value in targets.items()]
        monkeypatch.setattr(
            importlib.metadata, "entry_points", lambda group=None: [p for p in points if p.group == group]
        )

    return declare


def test_entry_points_are_loaded_at_the_first_look_up(installed, monkeypatch):
    registry = Registry("loss", group="plo.losses")
    package = types.ModuleType("elsewhere")
    package.loss = dpo
    # loading the entry point's attribute is what registers
    package.__getattr__ = lambda name: registry.register("theirs", "elsewhere:loss")
    monkeypatch.setitem(sys.modules, "elsewhere", package)
    installed("plo.losses", theirs="elsewhere:plug_in")
    assert not registry._entries
    assert registry["theirs"].load() is dpo
    assert registry["theirs"].origin == "elsewhere:loss"


def test_an_installed_package_may_import_plo(tmp_path):
    info = tmp_path / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[plo.losses]\ntheirs = theirs:loss\n")
    own = "from plo import register_loss\n@register_loss('theirs')\ndef loss(pairs): return pairs.chosen.logp()\n"
    (tmp_path / "theirs.py").write_text(own)
    for first in ("import plo", "import plo.scorers", "from plo.scorers import recipe"):
        code = f"{first}\nfrom plo import get_loss\nprint(get_loss('theirs').name)"
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
        assert done.stdout == "theirs\n", done.stderr


def test_an_entry_point_that_fails_is_named(installed):
    registry = Registry("loss", group="plo.losses")
    installed("plo.losses", theirs="no_such_package:loss")
    message = r"'theirs' \(no_such_package:loss\).*ModuleNotFoundError.*uninstall"
    with pytest.raises(RegistryError, match=message):
        registry["dpo"]
