"""Values and logit gradients equal to those of the authors' released code (1e-9; float32 sources 1e-5)."""

import math

import pytest
import torch
from golden import assert_gradient, assert_values, check_sum_gradient, common_pairs, load, needs_golden, tensor

from plo.losses import get_loss
from plo.losses.generators import get_generator
from plo.pairs import Pairs, Side

pytestmark = needs_golden


@pytest.mark.parametrize("name", ["tdpo1", "tdpo2"])
def test_tdpo(name):
    stored = load("tdpo")["outputs"][name]
    check_sum_gradient(name, stored["losses"], stored["gradient_of_sum_of_losses"])


def test_tdpo_margin_is_the_released_rewards_gap():
    """The released rewards, beta (D + K), hold the whole KL whatever alpha: their gap is TDPO1's margin."""
    stored = load("tdpo")["outputs"]["tdpo1"]
    gap = tensor(stored["chosen_rewards"]) - tensor(stored["rejected_rewards"])
    margin = get_loss("tdpo1").evaluate(common_pairs()[0]).metrics["margin"]
    assert_values(margin, gap.tolist())


@pytest.mark.parametrize(
    ("spec", "case"),
    [
        ("dpo", "dpo_beta_0p1"),
        ("dpo(beta=0.5)", "dpo_beta_0p5"),
        ("dpo(label_smoothing=0.1)", "cdpo_beta_0p1_label_smoothing_0p1"),
        ("ipo(reduction=sum)", "ipo_beta_0p1"),
    ],
)
def test_dpo_authors(spec, case):
    stored = load("dpo")["outputs"][case]
    check_sum_gradient(spec, stored["losses"], stored["gradient_of_sum_of_losses"])


def test_dpo_reference_free():
    """No loss of its own: `dpo` on Pairs whose reference is 0 everywhere."""
    stored = load("dpo")["outputs"]["dpo_reference_free_beta_0p1"]
    pairs, logits = common_pairs()
    sides = (
        Side(mask=side.mask, logps=side.logps, ref_logps=torch.zeros_like(side.logps))
        for side in (pairs.chosen, pairs.rejected)
    )
    values = get_loss("dpo")(Pairs(**dict(zip(("chosen", "rejected"), sides, strict=True))))
    assert_values(values, stored["losses"])
    values.sum().backward()
    assert_gradient(logits.grad, stored["gradient_of_sum_of_losses"])


@pytest.mark.parametrize(
    ("spec", "case"),
    [
        ("simpo", "sigmoid_beta_2_ratio_0p5"),
        ("simpo(beta=10, gamma_beta_ratio=0.3)", "sigmoid_beta_10_ratio_0p3"),
        ("simpo(label_smoothing=0.1)", "sigmoid_label_smoothing_0p1"),
        ("simpo(loss_type=hinge)", "hinge_beta_2_ratio_0p5"),
    ],
)
def test_simpo(spec, case):
    stored = load("simpo")["outputs"][case]
    value = check_sum_gradient(spec, stored["losses"], stored["gradient_of_sum_of_losses"])
    assert_values(
        value.metrics["margin"], (tensor(stored["chosen_rewards"]) - tensor(stored["rejected_rewards"])).tolist()
    )


@pytest.mark.parametrize(
    ("spec", "case"),
    [
        ("confpo(beta=2, gamma=1)", "simpo_beta_2_gamma_1"),
        ("confpo(beta=10, gamma=3)", "simpo_beta_10_gamma_3"),
        ("confpo(beta=2, gamma=0)", "sigmoid_beta_2"),
    ],
)
def test_confpo(spec, case):
    """Pair 1's chosen response of one token keeps none: value and gradient 0 there and here."""
    outputs = load("confpo")["outputs"]
    value = check_sum_gradient(spec, outputs[case]["losses"], outputs[case]["gradient_of_sum_of_losses"])
    counts = tensor(outputs["selected_token_counts"]["chosen"]) + tensor(outputs["selected_token_counts"]["rejected"])
    common = load("common")
    lengths = tensor(common["chosen_response_lengths"]) + tensor(common["rejected_response_lengths"])
    assert_values(value.metrics["kept"], (counts / lengths).tolist())


# plo's loss minus the released one, everywhere on the grid. plo's constants follow from the definition,
# L(1) = -h(1); the released closed forms drop them: ba 1/lam, sba 1/(s lam (1+lam)), and at lam 0, -1/s.
CONSTANTS = {
    "lr": 0.0,
    "kliep": 0.0,
    "ba_lam_0": 0.0,
    "ba_lam_0.5": 1 / 0.5,
    "sba_lam_0_s_4": -1 / 4,
    "sba_lam_0.5_s_4": 1 / (4 * 0.5 * 1.5),
    "sba_lam_-0.5_s_4": 1 / (4 * -0.5 * 0.5),
}


def generator_of(params):
    return get_generator(params["name"], **{key: params[key] for key in ("lam", "s") if key in params})


@pytest.mark.parametrize("case", CONSTANTS)
def test_generator_is_the_released_one_but_for_a_constant(case):
    file = load("tbpo_h_functions")
    stored = file["outputs"]["by_case"][case]
    log_R = tensor(file["inputs"]["log_R"]).requires_grad_()
    loss = generator_of(file["params"]["cases"][case]).loss(log_R)
    assert_values(loss - CONSTANTS[case], stored["loss"])
    assert_values(torch.autograd.grad(loss.sum(), log_R)[0], stored["gradient_wrt_log_R"])
    if "generic_equation_10_from_h_and_h_prime" in stored:  # with the released h no constant is missing
        assert_values(loss, stored["generic_equation_10_from_h_and_h_prime"])


def test_lsif_is_the_released_h_and_not_the_released_loss():
    """The released closed form is the paper's misprint R^2 - 2R; plo's is what the released h gives."""
    file = load("tbpo_h_functions")
    stored = file["outputs"]["by_case"]["lsif_as_released"]
    log_R = tensor(file["inputs"]["log_R"])
    R = log_R.exp()
    loss = get_generator("lsif").loss(log_R)
    assert_values(loss, stored["generic_equation_10_from_h_and_h_prime"])
    # (R^2 - 2/R + 1) - (R^2 - 2R) = 1 + 2R - 2/R
    assert_values(loss - tensor(stored["loss"]), (1 + 2 * R - 2 / R).tolist())


@pytest.mark.parametrize("case", ["lr", "kliep", "sba_lam_0_s_4"])
def test_clamped_log_R_is_the_released_generator(case):
    """The released generators clamp log R themselves; in plo the loss does."""
    file = load("tbpo_h_functions")
    log_R = tensor(file["inputs"]["log_R_clamp_probe"]).clamp(-30, 30)
    loss = generator_of(file["params"]["cases"][case]).loss(log_R)
    assert_values(loss - CONSTANTS[case], file["outputs"]["clamp_probe"][case])


@pytest.mark.parametrize("case", CONSTANTS)
def test_bregman_loss_on_given_log_R(case):
    """tbpo_a with pi = ref on the chosen side, no KL, beta 1: log R_t is log pi/ref of the rejected token."""
    file = load("tbpo_bregman_loss")
    log_R, mask = tensor(file["inputs"]["log_R"]), torch.tensor(file["inputs"]["loss_mask"])
    params = file["params"]["cases"][case]
    zeros = torch.zeros_like(log_R)
    chosen = Side(mask=mask, logps=zeros, ref_logps=zeros, kl_ref_pi=zeros)
    rejected = Side(mask=mask, logps=log_R, ref_logps=zeros, kl_ref_pi=zeros)
    options = {"generator": params["name"]} | {key: params[key] for key in ("lam", "s") if key in params}
    loss = get_loss("tbpo_a", beta=1.0, **options)(Pairs(chosen=chosen, rejected=rejected))
    constant = CONSTANTS[case] * mask.any(-1).double()  # an empty mask gives 0 in both
    assert_values(loss - constant, file["outputs"]["per_pair_loss"][case])


@pytest.mark.parametrize("generator", ["sba_lam_0_s_4", "lr", "kliep"])
@pytest.mark.parametrize("case", ["unclamped_range_10", "clamped_range_10_large_baselines", "zero_baseline"])
def test_tbpo_q(case, generator):
    """The default is the released code: value, gradients of logits and linear head."""
    file = load("tbpo_q_log_R")
    scale = {"unclamped_range_10": 1, "clamped_range_10_large_baselines": 12, "zero_baseline": 0}[case]
    stored = file["outputs"][case]["losses"][generator]
    pairs, logits = common_pairs()
    loss = get_loss("tbpo_q", generator=generator.split("_")[0])
    loss.build(6).double()
    head = torch.nn.Linear(6, 1, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(scale * tensor(file["inputs"]["baseline_head_weight"])[None])
        head.bias.fill_(scale * file["inputs"]["baseline_head_bias"])
    loss.module.baseline = head
    value = loss.evaluate(pairs)
    assert_values(value.values - CONSTANTS[generator], stored["per_pair_loss"])
    log_R, mask = tensor(file["outputs"][case]["log_R"]), torch.tensor(file["outputs"][case]["loss_mask"])
    assert_values(value.metrics["margin"], (-(log_R * mask).sum(-1) / mask.sum(-1)).tolist())
    value.values.mean().backward()
    assert_gradient(logits.grad, stored["gradient_of_mean_wrt_policy_logits"])
    assert_values(head.weight.grad[0], stored["gradient_of_mean_wrt_head_weight"])
    assert_values(head.bias.grad, stored["gradient_of_mean_wrt_head_bias"])


def test_centring_is_where_the_release_departs_from_the_paper():
    """Nothing is centred in the paper: log w of a pair with one common token is 0 in the release, not there."""
    file = load("tbpo_q_log_R")
    case = file["outputs"]["unclamped_range_10"]
    mask = torch.tensor(case["loss_mask"])
    log_w = (tensor(case["b_rejected"]) - tensor(case["b_chosen"])) * mask
    pairs, _ = common_pairs()
    loss = get_loss("tbpo_q(center=False)").build(6).double()
    loss.module.baseline = torch.nn.Linear(6, 1, dtype=torch.float64)
    with torch.no_grad():
        loss.module.baseline.weight.copy_(tensor(file["inputs"]["baseline_head_weight"])[None])
        loss.module.baseline.bias.fill_(file["inputs"]["baseline_head_bias"])
    released = -(tensor(case["log_R"]) * mask).sum(-1) / mask.sum(-1)
    mean_log_w = log_w.sum(-1) / mask.sum(-1)
    assert_values(loss.evaluate(pairs).metrics["margin"], (released - 0.1 * mean_log_w).tolist())
    assert math.fabs(mean_log_w[1]) > 0.1  # pair 1 has one token in common: the difference is not small
