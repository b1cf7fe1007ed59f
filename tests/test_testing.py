"""`LossTester` in a third party's test file: what pytest collects, what each test finds, what an exception must be."""

import re
import subprocess
import sys

import pytest
import torch

from plo.losses import get_loss, register_loss
from plo.testing import LossTester

TESTS = [name for name in vars(LossTester) if name.startswith("test_")]
THEIRS = """
from plo import register_loss
from plo.testing import LossTester


@register_loss("turned", needs=("ref_logps",), assumes="bradley_terry")
def turned(pairs, *, sign: float = 1.0):
    return -(sign * pairs.log_ratio_margin()).sigmoid().log()


class TestTurned(LossTester):
    loss = "turned"
    params = [{}, {"sign": -1.0}]
    exceptions = {("turned", "test_extremes"): "log of a sigmoid"}
"""


def test_a_third_party_s_test_file(tmp_path):
    (tmp_path / "test_theirs.py").write_text(THEIRS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rf", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    failed = re.findall(r"^FAILED test_theirs.py::TestTurned::(\S+)", run.stdout, re.M)
    own = "turned(sign=-1)"
    assert failed == [f"test_{name}[{own}]" for name in ("extremes", "direction", "recovery")], run.stdout
    assert f"{2 * len(TESTS) - 3} passed" in run.stdout
    assert "a sign is wrong, or the two sides are exchanged" in run.stdout


def margin(pairs):
    return (pairs.chosen.logps.sum(-1) - pairs.rejected.logps.sum(-1)) / 10


class Mutable(torch.nn.Module):
    """Changes its state in forward."""

    def __init__(self, hidden_size):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def observe(self, pairs):
        return {"margin": margin(pairs)}

    def after_step(self, step):
        self.calls.zero_()

    def forward(self, pairs):
        self.calls.add_(1)
        return -margin(pairs)


BROKEN = {  # name of the test that must fail: a loss without a reference
    "test_values": lambda pairs: (-margin(pairs)).double(),
    "test_needs": lambda pairs: -margin(pairs),
    "test_derivative": lambda pairs: -margin(pairs) * margin(pairs).detach().exp(),
    "test_gradient_reach": lambda pairs: -margin(pairs) + 0 * torch.ones(3, requires_grad=True).sum(),
    "test_padding": lambda pairs: -pairs.chosen.logps.mean(-1),
    "test_permutation": lambda pairs: -margin(pairs).cumsum(0),
    "test_batch_split": lambda pairs: -margin(pairs) / margin(pairs).abs().sum(),
    "test_state": Mutable,
    "test_extremes": lambda pairs: (-margin(pairs)).exp(),
    "test_direction": lambda pairs: margin(pairs),
    "test_recovery": lambda pairs: -margin(pairs),
}


@pytest.mark.parametrize("test", TESTS)
def test_each_test_finds_its_mistake(test):
    if test == "test_generator":
        broken = get_loss("bpo", generator=lambda R: -R.square())  # concave
        good = get_loss("bpo")
    else:
        needs = ("entropy",) if test == "test_needs" else ("ref_logps",)
        facts = {"assumes": "bradley_terry"} if test == "test_recovery" else {}
        register_loss("broken", needs=needs, **facts)(BROKEN[test])
        broken, good = get_loss("broken"), get_loss("dpo")
    getattr(LossTester(), test)(good)
    with pytest.raises(AssertionError):
        getattr(LossTester(), test)(broken)


def test_an_exception_must_be_needed():
    class Tester(LossTester):
        loss = "dpo"
        exceptions = {"test_direction": "to be seen", ("ipo", "test_padding"): "of another loss"}  # noqa: RUF012

    (dpo,) = Tester().losses()
    with pytest.raises(AssertionError, match=r"dpo passes test_direction, which is excepted \(to be seen\): remove"):
        Tester().test_direction(dpo)
    Tester().test_padding(dpo)
    with pytest.raises(TypeError, match="names no loss to test: set `loss`"):
        LossTester().losses()
