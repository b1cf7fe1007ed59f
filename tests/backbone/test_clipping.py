"""What an optimiser's step sees of clipped gradients, by hand and beside torch's own clipping."""

import pytest
import torch
from torch import nn

from plo.backbone.clipping import clip, global_norm


def parameters(*gradients):
    made = [nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for parameter, gradient in zip(made, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return made


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("max_norm", "times"), [(1.0, 1 / 13), (26.0, 1.0)], ids=["clipped", "left"])
def test_by_hand(fused, max_norm, times):
    """|(3, 4, 12)| = 13; Adam's first moment is a tenth of the gradient after a step. The other gradient stays 2."""
    first, second, other = parameters([3.0, 4.0], [12.0], [2.0])
    optimizer = torch.optim.AdamW([first, second, other], fused=fused)
    for _ in range(2):  # what a step sets does not stay for the next
        norm = clip(optimizer, [first.grad, second.grad], max_norm, [other.grad])
        assert norm.item() == pytest.approx(13)
        optimizer.step()
        seen = [(optimizer.state[p]["exp_avg"] / 0.1).tolist() for p in (first, second, other)]
        assert [*seen[0], *seen[1]] == pytest.approx([3 * times, 4 * times, 12 * times], rel=1e-6)
        assert seen[2] == pytest.approx([2])
        for parameter, gradient in zip((first, second, other), ([3.0, 4.0], [12.0], [2.0]), strict=True):
            parameter.grad = torch.tensor(gradient)
            optimizer.state[parameter]["exp_avg"].zero_()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_torchs_own_norm(dtype):
    gradients = [torch.randn(7, 5, dtype=dtype).t(), torch.randn(3, dtype=dtype)]
    exact = torch.cat([gradient.double().flatten() for gradient in gradients]).norm()
    rounding = {torch.bfloat16: 2**-7, torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
    assert global_norm(gradients).double().item() == pytest.approx(exact.item(), rel=rounding)


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
            clipping(optimizer, model)
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    ours = trained(lambda optimizer, model: clip(optimizer, [p.grad for p in model.parameters()], 0.5))
    torchs = trained(lambda _, model: nn.utils.clip_grad_norm_(model.parameters(), 0.5))
    torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-6)
    assert (ours - trained(lambda *_: None)).abs().max() > 1e-4
