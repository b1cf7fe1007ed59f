"""Every built-in loss, and the options that change its code path, pass the shared tester."""

from pathlib import Path

import pytest
from tester import LossTester

import plo.losses
from plo.losses import LOSSES, get_loss

BUILT_IN = [entry.name for entry in LOSSES if str(Path(plo.losses.__file__).parent) in entry.origin]
VARIANTS = [
    "dpo(label_smoothing=0.1)",
    "ipo(reduction=sum)",
    "bpo(generator=lr)",
    "bpo(generator=ba, lam=0.5, clip=(0.01, 100))",
    "bpo(generator=kliep, clip=(None, 50))",
    "tbpo_a(kl=k3)",
    "tbpo_a(detach_kl=True, generator=lr)",
    "tbpo_q(center=True, max_log_w=10, generator=lsif)",
    "dpo + 0.2*sft",
]


@pytest.mark.parametrize("spec", BUILT_IN + VARIANTS)
class TestEveryLoss(LossTester):
    pass


def test_the_built_in_losses_are_found():
    families = {"sft", "dpo", "ipo", "simpo", "orpo", "bpo", "tdpo1", "tdpo2", "tbpo_a", "tbpo_q"}
    assert families <= set(BUILT_IN)


@pytest.mark.parametrize("spec", BUILT_IN)
def test_every_loss_says_where_it_comes_from(spec):
    loss = get_loss(spec)
    assert loss.entry.facts["paper"]
    assert "Returns" in loss.target.__doc__
