"""Equal to TRL's DPOTrainer for every loss_type: values and logit gradients (1e-9; its float32 model 1e-5)."""

import pytest
import torch
from golden import assert_gradient, assert_values, common_pairs, load, needs_golden, pairs_of, tensor

from plo.losses import get_loss

pytestmark = needs_golden

TRL = {
    "sigmoid": "sigmoid(beta={beta})",
    "ipo": "ipo(beta={beta})",
    "hinge": "hinge(beta={beta})",
    "robust_label_smoothing_0p1": "robust(beta={beta}, label_smoothing=0.1)",
    "exo_pair_label_smoothing_1e-3": "exo_pair(beta={beta}, label_smoothing=1e-3)",
    "nca_pair": "nca_pair(beta={beta})",
    "bco_pair": "bco_pair(beta={beta})",
    "sppo_hard": "sppo_hard(beta={beta})",
    "aot": "aot(beta={beta})",
    "aot_label_smoothing_0p1": "aot(beta={beta}, label_smoothing=0.1)",
    "aot_unpaired": "aot_unpaired(beta={beta})",
    "aot_unpaired_label_smoothing_0p1": "aot_unpaired(beta={beta}, label_smoothing=0.1)",
    "apo_zero": "apo_zero(beta={beta})",
    "apo_down": "apo_down(beta={beta})",
    "discopop_tau_0p05": "discopop(beta={beta}, tau=0.05)",
    "sigmoid_norm": "sigmoid_norm(beta={beta})",
    "sigmoid_ld_alpha_0p5": "ld_dpo(beta={beta}, alpha=0.5)",
    "sft": "sft",
    "sigmoid_wpo_weighting": "wpo(beta={beta}, cap=None)",
    "sigmoid_forward_kl": "f_dpo(beta={beta}, divergence=forward_kl)",
    "sigmoid_js_divergence": "f_dpo(beta={beta}, divergence=js)",
    "sigmoid_alpha_divergence_coef_0p5": "f_dpo(beta={beta}, divergence=alpha, alpha=0.5)",
    "sigmoid_plus_sft_weights_1_0p1": "dpo(beta={beta}) + 0.1*sft",
}
COMMON = sorted(set(TRL) - {"sigmoid_alpha_divergence_coef_0p5"})  # does not run in float64 in TRL
TINY_LLAMA = sorted(set(TRL) - {"sigmoid_wpo_weighting"})  # not stored, nor what its weights need


def test_every_stored_case_is_compared():
    assert set(load("trl_dpo_losses_common")["outputs"]["by_case"]) == set(COMMON)
    assert set(load("trl_dpo_losses_tiny_llama")["outputs"]["by_case"]) == set(TINY_LLAMA)


def mean_loss(spec, pairs):
    value = get_loss(spec).evaluate(pairs)
    return value.values.mean() if value.mask is None else value.values.sum() / value.mask.sum()


@pytest.mark.parametrize("beta", ["0.1", "0.5"])
@pytest.mark.parametrize("case", COMMON)
def test_value_and_gradient(case, beta):
    stored = load("trl_dpo_losses_common")["outputs"]["by_case"][case][f"beta_{beta}"]
    pairs, logits = common_pairs()
    loss = mean_loss(TRL[case].format(beta=beta), pairs)
    assert_values(loss, stored["loss"])
    loss.backward()
    assert_gradient(logits.grad, stored["gradient_wrt_policy_logits"])


@pytest.mark.parametrize("beta", ["0.1", "0.5"])
@pytest.mark.parametrize("case", TINY_LLAMA)
def test_tiny_llama(case, beta):
    file = load("trl_dpo_losses_tiny_llama")
    mask = torch.tensor(file["inputs"]["response_mask"]).bool()
    sources = {"logps": "policy_per_token_logps", "ref_logps": "reference_per_token_logps"}
    rows = {
        name: [values[m] for values, m in zip(tensor(file["inputs"][source]), mask, strict=True)]
        for name, source in sources.items()
    }
    stored = file["outputs"]["by_case"][case][f"beta_{beta}"]["loss"]
    assert_values(mean_loss(TRL[case].format(beta=beta), pairs_of(rows)), stored, rtol=1e-5)
