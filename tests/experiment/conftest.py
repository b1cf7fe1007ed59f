"""A weighted loss with an oracle; `staged` is importable, whatever folder pytest starts in."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import logsigmoid

from plo.losses import register_loss
from plo.scorers import Stage, register_scorer

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def oracle_loss():
    """A weighted loss whose weights come from a DPO oracle, and how often its scorer ran."""

    @register_loss("weighted", needs=("ref_logps", "weights"), scorer="oracle_ratio")
    def weighted(pairs, *, beta: float = 0.1):
        chosen, rejected = ((side.weights * side.log_ratios).sum(-1) for side in (pairs.chosen, pairs.rejected))
        return -logsigmoid(beta * (chosen - rejected))

    scored = []

    @register_scorer("oracle_ratio", stages=lambda reversed: {"oracle": Stage(train={"steps": 3}, reversed=reversed)})
    def oracle_ratio(material, *, reversed: bool = False):
        scored.append(len(material.pairs))
        both = zip(material.logps("oracle"), material.logps("oracle.reference"), strict=True)
        yield from (tuple(o - r for o, r in zip(*sides, strict=True)) for sides in both)

    @register_scorer("lottery", seeded=True)
    def lottery(material):
        scored.append(material.seed)
        generator = torch.Generator().manual_seed(material.seed)
        for pair in material.pairs:
            yield tuple(torch.rand(len(ids), generator=generator) for ids in (pair.chosen_ids, pair.rejected_ids))

    return scored
