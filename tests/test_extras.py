"""A loss needs torch and a few small packages; what needs more names the extra that brings it."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest

from plo.extras import EXTRAS, MissingExtra, require

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PREAMBLE = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {refused} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
"""
LOSS = """
import torch
from plo import Pairs, Side, get_loss, register_loss

@register_loss("mine", needs=("ref_logps",))
def mine(pairs, *, beta: float = 0.5):
    '''Half of the squared margin.'''
    return beta * pairs.log_ratio_margin().square()

mask = torch.ones(1, 2, dtype=torch.bool)
side = lambda *logps: Side(logps=torch.tensor([logps]), mask=mask, ref_logps=torch.zeros(1, 2))
pairs = Pairs(chosen=side(-1.0, -1.0), rejected=side(-2.0, -3.0))
print(float(mine(pairs)), round(float(get_loss("dpo", beta=1.0).evaluate(pairs).values), 6))
assert not {"pandas", "transformers", "scipy", "datasets"} & set(sys.modules)
"""
COMMAND = """
from plo.cli import app
sys.argv = ["plo", *{arguments}]
app()
"""


def names(requirements):
    return {re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-") for requirement in requirements}


@pytest.fixture(scope="module")
def refused():
    """Names of all installed packages that `pip install plo` does not bring."""
    core, new = {"plo", "pip", "setuptools"}, names(PROJECT["dependencies"])
    while new:
        core |= new
        found = set()
        for name in new:
            try:
                found |= names(r for r in requires(name) or () if "extra ==" not in r)
            except PackageNotFoundError:  # of another platform
                continue
        new = found - core
    packages = packages_distributions()
    return {top for top, owners in packages.items() if not core & {o.lower().replace("_", "-") for o in owners}}


def run(refused, code):
    code = PREAMBLE.format(refused=refused) + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def test_a_loss_is_registered_and_evaluated_without_any_extra(refused):
    """By hand: D = -2 and -5, so the margin is 3; .5 * 9, and log(1 + exp(-3)) of DPO with beta 1."""
    assert {"transformers", "pandas", "scipy", "mlflow", "datasets"} <= refused
    done = run(refused, LOSS)
    assert done.stdout == "4.5 0.048587\n", done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "shown"),
    [
        (["list", "losses", "tbpo*"], 0, "tbpo_q"),
        (["losses"], 0, "hinge"),
        (["list", "sources"], 0, "ultrafeedback"),
        (["verify", "dpo"], 0, "policy recovery"),
        (["compare", "name=none", "--loss", "dpo"], 2, r"MissingExtra: .*transformers.*pip install 'plo\[train\]'"),
        (["leaderboard"], 2, r"MissingExtra: .*scipy.*pip install 'plo\[report\]'"),
    ],
)
def test_commands_without_any_extra(arguments, code, shown, refused, tmp_path):
    done = run(refused, COMMAND.format(arguments=arguments))
    assert done.returncode == code, done.stderr
    assert re.search(shown, done.stdout + done.stderr)
    assert "Traceback" not in done.stderr


def test_the_extras_name_what_pyproject_installs():
    optional = PROJECT["optional-dependencies"]
    owners = packages_distributions()
    for extra, imported in EXTRAS.items():
        installed = names(r for r in optional[extra] if not r.startswith("plo["))
        installed |= names(optional["track"]) if "plo[track]" in optional[extra] else set()
        installed -= {"setuptools", "scikit-learn", "ray"}
        known = {owner.lower().replace("_", "-") for name in imported for owner in owners.get(name, ())}
        assert installed <= known | names(PROJECT["dependencies"]), extra
    bounds = [r for part in (PROJECT["dependencies"], *optional.values()) for r in part if not r.startswith("plo[")]
    assert all("<" in r or r.startswith("psutil") for r in bounds), "a range ends before the next major version"


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(EXTRAS, "track", ("json", "no_such_package"))
    with pytest.raises(
        MissingExtra, match=r"^plo.tracking needs no_such_package. Install .*: pip install 'plo\[track\]'\.$"
    ):
        require("track", "plo.tracking")
