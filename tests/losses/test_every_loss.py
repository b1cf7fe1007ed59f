"""Every built-in loss, and the options that change its code path, pass the shared tester."""

from pathlib import Path

import pytest

import plo.losses
from plo.losses import LOSSES, get_loss
from plo.testing import LossTester

BUILT_IN = [entry.name for entry in LOSSES if str(Path(plo.losses.__file__).parent) in entry.origin]
VARIANTS = [
    "dpo(label_smoothing=0.1)",
    "ipo(reduction=sum)",
    "bpo(generator=lr)",
    "bpo(generator=ba, lam=0.5, clip=(0.01, 100))",
    "bpo(generator=kliep, clip=(None, 50))",
    "bpo(ratio=simpo, beta=2, clip=(0.01, 100))",
    "bpo(ratio=js)",
    "bpo(preset=llama3)",
    "bpo(ratio=forward_kl, clip=(0.01, 100))",
    "bpo(ratio=alpha, generator=lr)",
    "f_dpo(divergence=reverse_kl)",
    "f_dpo(divergence=forward_kl)",
    "f_dpo(divergence=forward_kl, beta=5)",
    "f_dpo(divergence=alpha)",
    "f_dpo(divergence=alpha, alpha=1.5)",
    "simpo(loss_type=hinge)",
    "simpo(label_smoothing=0.1)",
    "alphapo(alpha=-0.5)",
    "alphapo(alpha=0)",
    "alphapo(alpha=3, beta=10)",
    "asft(nll=1, beta=2)",
    "aot(label_smoothing=0.1)",
    "aot_unpaired(label_smoothing=0.1)",
    "discopop(tau=3, beta=1)",
    "ld_dpo(alpha=0)",
    "sepo(k=0.5, k_rejected=0.2, skip_first=True, gamma=2)",
    "twdpo(loss_type=ipo)",
    "twdpo(kl=0.5)",
    "wpo(base=ipo, beta=0.5)",
    "tbpo_a(kl=k3)",
    "tbpo_a(kl=none)",
    "tbpo_a(detach_kl=True, generator=lr)",
    "tbpo_q(center=False, generator=lsif)",
    "wpo(cap=None)",
    "adpo(window=2)",
    "adpo(window=all)",
    "adpo(segments=2)",
    "adadpo(ceiling=1e6, length_norm=False)",
    "adadpo(space=policy, base=simpo, beta=2)",
    "treg(alpha=0)",
    "f_dpo(divergence=chi2)",
    "f_dpo(divergence=chi2, beta=5)",
    "chi_po(r_max=1)",
    "chi_po(beta=5)",
    "squared_po(beta=5)",
    "cal_dpo(weight=0)",
    "cpo(alpha=0)",
    "rpo(alpha=0)",
    "dpo_shift(lam=1)",
    "dpo_shift(lam=0.5, lam_end=1)",
    "odpo(alpha=0)",
    "odpo(scale=linear)",
    "rpo_reward(distance=forward_kl)",
    "rpo_reward(distance=squared)",
    "beta_dpo(keep=0.5, alpha=0)",
    "bco + 0.2*beta_dpo",
    "dpo + 0.2*sft",
]


class TestEveryLoss(LossTester):
    def losses(self):
        return [get_loss(spec) for spec in BUILT_IN + VARIANTS]


TRL = {  # every loss_type of its DPOTrainer
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
}
OTHERS = {
    *("simpo", "alphapo", "confpo", "orpo", "asft", "dpop", "length_dpo", "ld_dpo", "f_dpo", "wpo", "bpo"),
    *("tdpo1", "tdpo2", "tbpo_a", "tbpo_q", "twdpo", "sepo", "adpo"),
    *("cpo", "rpo", "minor_dpo", "dpo_shift", "odpo", "rpo_reward", "mappo", "chi_po", "squared_po", "cal_dpo"),
    *("bco", "beta_dpo", "alpha_dpo", "epsilon_dpo", "kto"),
}


def test_the_built_in_losses_are_found():
    assert {LOSSES[name].name for name in TRL | OTHERS} <= set(BUILT_IN)


@pytest.mark.parametrize("spec", BUILT_IN)
def test_every_loss_says_where_it_comes_from(spec):
    loss = get_loss(spec)
    assert loss.entry.facts.paper
    assert "Returns" in loss.target.__doc__
    assert "Assumes: " in loss.target.__doc__
