"""The check of a loss's state fails for one that depends on the division of a step, or that forward changes."""

import pytest
import torch
from torch import nn

from plo.losses import get_loss, register_loss
from plo.verify import FAILED, NOT_APPLICABLE, PASSED
from plo.verify import prepared as prepare
from plo.verify.state import state


class Counts(nn.Module):
    def __init__(self, hidden_size):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def observe(self, pairs):
        return {"margin": pairs.log_ratio_margin()}

    def after_step(self, step):
        self.mean.mul_(0.5).add_(step["margin"].mean())

    def forward(self, pairs):
        return -pairs.log_ratio_margin() + self.mean


class OfTheMicroBatch(Counts):
    def observe(self, pairs):
        return {"margin": pairs.log_ratio_margin().mean().expand(len(pairs))}

    def after_step(self, step):
        self.mean.copy_(step["margin"].square().mean())


class InForward(Counts):
    def forward(self, pairs):
        with torch.no_grad():
            self.mean.add_(1)
        return super().forward(pairs)


CASES = {Counts: PASSED, OfTheMicroBatch: FAILED, InForward: FAILED}


@pytest.mark.parametrize("kind", CASES)
def test_a_state(kind):
    name = f"state_{kind.__name__}"
    register_loss(name, needs=("ref_logps",))(kind)
    check = state(prepare(get_loss(name)))
    assert check.result == CASES[kind], check
    if check.result == FAILED:
        assert "mean" in check.where and check.remedy


def test_a_loss_without_state():
    assert state(prepare(get_loss("dpo"))).result == NOT_APPLICABLE
