"""A margin that is zero but for rounding is a tie, wherever a sign is counted."""

import math

import pytest
import torch

from plo.backbone.batch import collate
from plo.backbone.model import Backbone
from plo.backbone.reference import ReferenceStore
from plo.backbone.terms import always_logged
from plo.config import ModelConfig
from plo.losses import get_loss
from plo.margins import rounding, wins, without_rounding
from plo.pairs import Pairs, Side
from plo.subjects.policy import log_ratio_margins


def two_tokens(ratios):
    """Pairs of two tokens on either side, of these log-ratio margins."""
    ratios = torch.as_tensor(ratios, dtype=torch.float32)
    logps = torch.zeros(len(ratios), 2)
    mask = torch.ones(len(ratios), 2, dtype=torch.bool)
    chosen = Side(logps=torch.stack([ratios, torch.zeros_like(ratios)], 1), mask=mask, ref_logps=logps)
    return Pairs(chosen=chosen, rejected=Side(logps=logps, mask=mask, ref_logps=logps))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, 10 * 2**-7),  # of four tokens twice this; half precision is rounded once a product
        (torch.float16, 10 * 2**-10),
        (torch.float32, 100 * 2**-23),
        (torch.float64, 100 * 2**-52),
    ],
)
def test_the_tolerance_by_hand(dtype, expected):
    """It grows with the root of the number of tokens."""
    assert rounding(torch.tensor([1, 4, 100]), dtype).tolist() == pytest.approx([expected, 2 * expected, 10 * expected])


def test_ties_count_half_and_nan_stays():
    margins = without_rounding(torch.tensor([1e-9, -1e-9, 0.0, 1.0, -1.0, math.nan]), torch.tensor(4), torch.float32)
    assert wins(margins).tolist() == pytest.approx([0.5, 0.5, 0.5, 1.0, 0.0, math.nan], nan_ok=True)


def test_the_logged_accuracy_by_hand():
    """Margins of .1 nats over four tokens are rounding in bfloat16 (.16), not in float32 (2.4e-5)."""
    pairs = two_tokens([0.1, -0.1, 1e-6, -1e-6, 0.2, -0.2])
    assert always_logged(pairs, torch.float32)["accuracy"].tolist() == [1.0, 0.0, 0.5, 0.5, 1.0, 0.0]
    assert always_logged(pairs, torch.bfloat16)["accuracy"].tolist() == [0.5, 0.5, 0.5, 0.5, 1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("packed", [True, False])
def test_before_the_first_step_every_pair_is_a_tie(dtype, packed, tiny_llama, tiny_pairs, tmp_path):
    """Even where the reference's statistics carry other rounding errors than the policy's, here up to 2 eps a token."""
    backbone = Backbone(tiny_llama(dtype=dtype), ModelConfig(lora_r=4)).to(dtype)
    backbone.use_packed(packed)
    backbone.reset(0, get_loss("dpo"))
    backbone.to(dtype)
    pairs = tiny_pairs(24)
    reference = ReferenceStore(tmp_path).get(backbone, pairs)
    generator = torch.Generator().manual_seed(0)
    for sides in reference.logps:
        for logps in sides:
            noise = torch.rand(logps.shape, generator=generator, dtype=logps.dtype) - 0.5
            logps *= 1 + 4 * torch.finfo(dtype).eps * noise
    assert torch.equal(log_ratio_margins(backbone, pairs, reference), torch.zeros(24, dtype=torch.float64))
    batch = reference.added_to(collate(pairs, packed=packed), range(24))
    metrics = backbone(batch)["metrics"]
    assert metrics["margin"].abs().max() > 0
    assert torch.equal(metrics["accuracy"], torch.full_like(metrics["accuracy"], 0.5))
