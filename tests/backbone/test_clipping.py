"""What an optimiser's step sees of clipped gradients, by hand and beside torch's own clipping."""

import pytest
import torch
from torch import nn

from plo.backbone.clipping import WINDOW, clip, relative_limit, remember_norm

GRADIENTS = [3.0, 4.0], [12.0], [2.0]


@pytest.mark.parametrize("fused", [True, False])
def test_by_hand(fused):
    """|(3, 4, 12)| = 13; Adam's first moment is a tenth of the gradient after its first step. The other gradient stays 2."""
    first, second, other = parameters = [nn.Parameter(torch.zeros(len(gradient))) for gradient in GRADIENTS]
    optimizer = torch.optim.AdamW([{"params": [first, second]}, {"params": [other]}], fused=fused)
    for max_norm, times in ((1, 1 / 13), (26, 1), (6.5, 0.5)):  # what one step sets does not stay for the next
        for parameter, gradient in zip(parameters, GRADIENTS, strict=True):
            parameter.grad = torch.tensor(gradient)
        assert clip(optimizer, [first, second], max_norm, [other]).item() == pytest.approx(13)
        optimizer.step()
        seen = [optimizer.state[p]["exp_avg"] / 0.1 for p in parameters]
        assert torch.cat(seen).tolist() == pytest.approx([3 * times, 4 * times, 12 * times, 2], rel=1e-6)
        for parameter in parameters:
            optimizer.state[parameter]["exp_avg"].zero_()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_norm(dtype):
    parameters = [nn.Parameter(torch.zeros(7, 5, dtype=dtype)), nn.Parameter(torch.zeros(3, dtype=dtype))]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape[::-1], dtype=dtype).permute(*range(parameter.dim())[::-1])
    exact = torch.cat([p.grad.double().flatten() for p in parameters]).norm().item()
    frozen = nn.Parameter(torch.zeros(2))
    norm = clip(torch.optim.SGD(parameters), [*parameters, frozen], 1.0)
    assert norm.item() == pytest.approx(
        exact, rel={torch.bfloat16: 2**-7, torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
    )


@pytest.mark.parametrize("fused", [True, False])
def test_without_a_gradient_the_norm_is_0(fused):
    """As of the policy's, if a loss trains its own parameters alone."""
    frozen, own = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    own.grad = torch.tensor([3.0, 4.0])
    optimizer = torch.optim.SGD([frozen, own], lr=1.0, fused=fused)
    assert clip(optimizer, [frozen], 1.0, [own]) == 0
    optimizer.step()
    assert own.tolist() == [-3, -4]


@pytest.mark.parametrize("kind", ["adamw", "adamw fused", "sgd fused"])
def test_weights_are_those_that_torchs_own_clipping_leads_to(kind):
    def trained(clipping):
        torch.manual_seed(0)
        model = nn.Linear(6, 4)
        make = torch.optim.SGD if kind.startswith("sgd") else torch.optim.AdamW
        optimizer = make(model.parameters(), lr=0.1, fused="fused" in kind)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(8, 6)).square().sum().backward()
            clipping(optimizer, list(model.parameters()))
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    ours = trained(lambda optimizer, parameters: clip(optimizer, parameters, 0.5))
    torchs = trained(lambda _, parameters: nn.utils.clip_grad_norm_(parameters, 0.5))
    torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-6)
    assert (ours - trained(lambda *_: None)).abs().max() > 1e-4


def test_a_checkpoint_of_an_optimiser_that_was_not_fused_makes_it_one_that_is_not():
    """`load_state_dict` brings the groups' settings with it."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.tensor([13.0])
    optimizer = torch.optim.AdamW([parameter], fused=True)
    optimizer.load_state_dict(torch.optim.AdamW([parameter], fused=False).state_dict())
    clip(optimizer, [parameter], 1.0)
    optimizer.step()
    assert optimizer.state[parameter]["exp_avg"].item() == pytest.approx(0.1, rel=1e-6)


def test_the_relative_limit_by_hand():
    """Medians of (3), (3, 9), (3, 9, 4); then the last hundred norms are 1, 2, ..., 100, whose median is 50.5."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    assert relative_limit(optimizer, 2.0) == float("inf")
    for norm, limit in ((3.0, 6.0), (9.0, 12.0), (4.0, 8.0)):
        remember_norm(optimizer, norm)
        assert relative_limit(optimizer, 2.0) == limit
    for norm in range(1, WINDOW + 1):
        remember_norm(optimizer, float(norm))
    assert relative_limit(optimizer, 2.0) == 101
