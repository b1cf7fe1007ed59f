"""Each statistic against torch.distributions, and the chunking against no chunking."""

from functools import partial
from unittest.mock import Mock

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from plo.backbone import token_statistics as statistics_module
from plo.backbone.token_statistics import STATISTICS, needs_reference, register_statistic, token_statistics

NAMES = ("logps", "kl_ref_pi", "kl_pi_ref", "entropy", "log_p2")


@pytest.fixture
def case():
    torch.manual_seed(0)
    n, d, v = 23, 5, 11
    hidden = torch.randn(n, d, dtype=torch.float64, requires_grad=True)
    ref_hidden = torch.randn(n, d, dtype=torch.float64)
    weight = torch.randn(v, d, dtype=torch.float64)
    return hidden, ref_hidden, torch.randint(v, (n,)), lambda h: h @ weight.T


def of_distributions(logits, ref_logits, targets):
    pi, ref = Categorical(logits=logits), Categorical(logits=ref_logits)
    return {
        "logps": pi.log_prob(targets),
        "kl_ref_pi": kl_divergence(ref, pi),
        "kl_pi_ref": kl_divergence(pi, ref),
        "entropy": pi.entropy(),
        "log_p2": pi.probs.square().sum(-1).log(),
    }


def test_statistics_equal_torch_distributions(case):
    hidden, ref_hidden, targets, head = case
    expected = of_distributions(head(hidden), head(ref_hidden), targets)
    got = token_statistics(NAMES, hidden, targets, head, ref_hidden, head, vocabulary=11)
    for name in NAMES:
        torch.testing.assert_close(got[name], expected[name], atol=1e-12, rtol=1e-12)


def test_chunks_change_neither_values_nor_gradients(case, monkeypatch):
    hidden, ref_hidden, targets, head = case

    def run():
        hidden.grad = None
        got = token_statistics(NAMES, hidden, targets, head, ref_hidden, head, vocabulary=11)
        sum(values.square().sum() for values in got.values()).backward()
        return [got[name].detach() for name in NAMES], hidden.grad.clone()

    whole, whole_grad = run()
    monkeypatch.setattr(statistics_module, "CHUNK_ELEMENTS", 3 * 11)  # three tokens at a time; the last chunk is ragged
    chunked, chunked_grad = run()
    for a, b in zip(whole, chunked, strict=True):
        torch.testing.assert_close(a, b, atol=1e-13, rtol=1e-12)
    torch.testing.assert_close(whole_grad, chunked_grad, atol=1e-13, rtol=1e-12)


def test_a_token_of_probability_zero_gives_finite_kl_and_entropy():
    log_probs, head = torch.tensor([[0.0, -torch.inf], [-0.5, -0.9327521]]), torch.nn.Identity()
    got = token_statistics(
        ("kl_ref_pi", "entropy"), log_probs, torch.tensor([0, 1]), head, log_probs, head, vocabulary=2
    )
    assert got["entropy"][0] == 0 and got["kl_ref_pi"].abs().max() < 1e-6


def test_a_registered_statistic_is_computed():
    register_statistic("greatest", reference=False)(lambda log_probs, ref, targets: log_probs.max(-1).values)
    try:
        got = token_statistics(
            ("greatest",), torch.tensor([[0.0, 0.0]]), torch.tensor([1]), torch.nn.Identity(), vocabulary=2
        )
        assert got["greatest"].item() == pytest.approx(-0.6931471805599453)
    finally:
        del STATISTICS._entries["greatest"]


def test_statistics_with_arguments_are_softmaxes_of_other_logits():
    """Temperature 2 halves the logits; epsilon .5 adds half of their distance from the reference's."""
    torch.manual_seed(0)
    logits, ref, targets = torch.randn(4, 7).double(), torch.randn(4, 7).double(), torch.tensor([0, 3, 6, 1])
    names = ("logps_at(temperature=2)", "logps_beyond(epsilon=0.5)", "logps_beyond(epsilon=-1)")
    head = torch.nn.Identity()
    got = token_statistics(names, logits.requires_grad_(), targets, head, ref, head, vocabulary=7, frozen=True)
    expected = [logits / 2, 1.5 * logits - 0.5 * ref, ref]
    for name, other in zip(names, expected, strict=True):
        torch.testing.assert_close(got[name], other.log_softmax(-1)[range(4), targets], atol=1e-12, rtol=0)
    (gradient,) = torch.autograd.grad(got[names[0]].sum(), logits)
    share = (logits / 2).softmax(-1).detach()
    expected = (torch.nn.functional.one_hot(targets, 7) - share) / 2
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)
    assert needs_reference(names) and not needs_reference(names[:1])


def test_a_statistic_without_gradient_beside_one_with():
    """Where the head is frozen its gradient is taken on the way forward: there may be none."""

    @register_statistic("hit")
    def hit(log_probs, ref_log_probs, targets):
        return (log_probs.argmax(-1) == targets).to(log_probs)

    try:
        torch.manual_seed(0)
        weight, hidden = torch.randn(11, 4), torch.randn(6, 4, requires_grad=True)
        targets = torch.randint(11, (6,))
        out = token_statistics(("hit", "logps"), hidden, targets, lambda h: h @ weight.t(), frozen=True, vocabulary=11)
        factors = torch.randn(6)
        (out["logps"] * factors).sum().backward()
        log_probs = (hidden.detach() @ weight.t()).log_softmax(-1)
        assert torch.equal(out["hit"], (log_probs.argmax(-1) == targets).float())
        expected = factors[:, None] * (weight[targets] - log_probs.exp() @ weight)
        torch.testing.assert_close(hidden.grad, expected, rtol=1e-5, atol=1e-6)
    finally:
        del STATISTICS._entries["hit"]


@pytest.mark.parametrize(
    ("frozen", "kept", "products"),
    [
        (True, 0, 4),  # four chunks of at most two tokens
        (False, 2 * 7 * 11 - 1, 8),  # each again in the backward pass
        (False, 2 * 7 * 11, 1),  # the logits of all seven tokens are kept, and the reference's
    ],
)
def test_chunks_and_frozen_heads_change_no_gradient(frozen, kept, products, monkeypatch):
    torch.manual_seed(0)
    weight, hidden = torch.randn(11, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    ref_hidden, targets = torch.randn(7, 4, dtype=torch.float64), torch.randint(11, (7,))
    names, factors = ("logps", "kl_ref_pi", "entropy"), torch.randn(3, 7, dtype=torch.float64)

    def gradient(chunk, kept, frozen):
        monkeypatch.setattr(statistics_module, "CHUNK_ELEMENTS", chunk)
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_(not frozen)
        heads = Mock(side_effect=lambda x: x @ w.t()), Mock(side_effect=lambda x: x @ weight.t())
        out = token_statistics(
            names, h, targets, heads[0], ref_hidden, heads[1], frozen=frozen, vocabulary=11, kept=kept
        )
        sum((f * out[n]).sum() for f, n in zip(factors, names, strict=True)).backward()
        return h.grad, w.grad, [head.call_count for head in heads]

    whole = gradient(1000, 0, frozen=False)
    chunked = gradient(22, kept, frozen)  # two tokens at a time
    assert chunked[2] == [products, products]
    torch.testing.assert_close(chunked[0], whole[0], rtol=1e-10, atol=1e-12)
    if not frozen:
        torch.testing.assert_close(chunked[1], whole[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("frozen", [True, False])
def test_under_autocast_nothing_after_the_logits_is_rounded(frozen):
    """Policy and reference near each other, where rounded log-probs would leave little of their divergence.

    The expected values come from the logits that the heads gave: a second product of the same numbers may round otherwise.
    """
    torch.manual_seed(0)
    weight, hidden = torch.randn(11, 4, requires_grad=not frozen), torch.randn(7, 4, requires_grad=True)
    ref_hidden, targets = (hidden + 0.1 * torch.randn(7, 4)).detach(), torch.randint(11, (7,))
    given = {"policy": [], "reference": []}

    def head(whose, x):
        given[whose].append(x @ weight.t())
        return given[whose][-1]

    with torch.autocast("cpu", torch.bfloat16):
        got = token_statistics(
            NAMES,
            hidden,
            targets,
            partial(head, "policy"),
            ref_hidden,
            partial(head, "reference"),
            frozen=frozen,
            vocabulary=11,
        )
    (logits,), (ref_logits,) = given.values()  # one chunk
    assert logits.dtype == torch.bfloat16
    expected = of_distributions(logits.detach().double(), ref_logits.detach().double(), targets)
    # A divergence is a difference of log-probs, each rounded by up to half an eps of its size: together by one eps of the
    # largest. Measured: 1.6e-7 to 3.5e-7, by the vector instructions; bfloat16's eps is 65,536 times as large.
    largest = max(x.detach().double().log_softmax(-1).abs().max().item() for x in (logits, ref_logits))
    rounding = torch.finfo(torch.float32).eps * largest
    for name, values in got.items():
        assert values.dtype == torch.float32
        torch.testing.assert_close(values.double(), expected[name], rtol=1e-5, atol=rounding)
