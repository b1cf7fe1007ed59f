"""Each statistic against torch.distributions, and the chunking against no chunking."""

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from plo.backbone import statistics
from plo.backbone.statistics import STATISTICS, register_statistic, token_statistics

NAMES = ("logps", "kl_ref_pi", "kl_pi_ref", "entropy", "log_p2")


@pytest.fixture
def case():
    torch.manual_seed(0)
    n, d, v = 23, 5, 11
    hidden = torch.randn(n, d, dtype=torch.float64, requires_grad=True)
    ref_hidden = torch.randn(n, d, dtype=torch.float64)
    weight = torch.randn(v, d, dtype=torch.float64)
    return hidden, ref_hidden, torch.randint(v, (n,)), lambda h: h @ weight.T


def test_statistics_equal_torch_distributions(case):
    hidden, ref_hidden, targets, head = case
    pi, ref = Categorical(logits=head(hidden)), Categorical(logits=head(ref_hidden))
    expected = {
        "logps": pi.log_prob(targets),
        "kl_ref_pi": kl_divergence(ref, pi),
        "kl_pi_ref": kl_divergence(pi, ref),
        "entropy": pi.entropy(),
        "log_p2": pi.probs.square().sum(-1).log(),
    }
    got = token_statistics(NAMES, hidden, targets, head, ref_hidden, head)
    for name in NAMES:
        torch.testing.assert_close(got[name], expected[name], atol=1e-12, rtol=1e-12)


def test_chunks_change_neither_values_nor_gradients(case, monkeypatch):
    hidden, ref_hidden, targets, head = case

    def run():
        hidden.grad = None
        got = token_statistics(NAMES, hidden, targets, head, ref_hidden, head)
        sum(values.square().sum() for values in got.values()).backward()
        return [got[name].detach() for name in NAMES], hidden.grad.clone()

    whole, whole_grad = run()
    monkeypatch.setattr(statistics, "CHUNK_ELEMENTS", 3 * 11)  # three tokens at a time; the last chunk is ragged
    chunked, chunked_grad = run()
    for a, b in zip(whole, chunked, strict=True):
        torch.testing.assert_close(a, b, atol=1e-13, rtol=1e-12)
    torch.testing.assert_close(whole_grad, chunked_grad, atol=1e-13, rtol=1e-12)


def test_a_token_of_probability_zero_gives_finite_kl_and_entropy():
    log_probs = torch.tensor([[0.0, -torch.inf], [-0.5, -0.9327521]])
    got = token_statistics(
        ("kl_ref_pi", "entropy"), log_probs, torch.tensor([0, 1]), torch.nn.Identity(), log_probs, torch.nn.Identity()
    )
    assert got["entropy"][0] == 0 and got["kl_ref_pi"].abs().max() < 1e-6


def test_a_registered_statistic_is_computed():
    register_statistic("greatest", reference=False)(lambda log_probs, ref, targets: log_probs.max(-1).values)
    try:
        got = token_statistics(("greatest",), torch.tensor([[0.0, 0.0]]), torch.tensor([1]), torch.nn.Identity())
        assert got["greatest"].item() == pytest.approx(-0.6931471805599453)
    finally:
        del STATISTICS._entries["greatest"]
