"""The metrics of a TRL trainer with a plo loss: TRL's under TRL's names, and the loss's own."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from plo.backbone.terms import Terms, accuracy
from plo.pairs import Pairs
from plo.trl.batch import ENTROPY, TOP1, lm_head
from plo.trl.reference import causal_lm


def metrics(trainer: Any, pairs: Pairs, terms: Terms, counts: Tensor, logged: Mapping[str, Tensor]) -> dict[str, float]:
    """Compute the metrics of a batch, over all processes; `logged` are the statistics `batch.LOGGED` of its tokens."""
    accelerator = trainer.accelerator
    sides = {"chosen": pairs.chosen, "rejected": pairs.rejected}
    of_pairs = {f"logps/{name}": side.logp() for name, side in sides.items()}
    if trainer.plo_reference.source != "none":
        beta = next((t.params["beta"] for _, t in trainer.plo_loss.terms if "beta" in t.params), trainer.args.beta)
        rewards = {name: beta * side.log_ratio() for name, side in sides.items()}
        margins = rewards["chosen"] - rewards["rejected"]
        of_pairs |= {f"rewards/{name}": values for name, values in rewards.items()}
        halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
        dtype = halves.get(accelerator.mixed_precision) or lm_head(causal_lm(trainer)).weight.dtype
        of_pairs |= {"rewards/accuracies": accuracy(pairs, dtype), "rewards/margins": margins}
    of_pairs |= terms.metrics
    values = accelerator.gather(torch.stack([v.float() for v in of_pairs.values()], dim=1)).mean(0).tolist()
    found = dict(zip(of_pairs, values, strict=True))
    chosen = int(pairs.chosen.mask.sum())
    sums = [logged[ENTROPY].sum(), len(logged[ENTROPY]), logged[TOP1][:chosen].sum(), chosen]
    sums = torch.tensor([float(value) for value in sums], device=trainer.args.device)
    entropy, responses, likeliest, chosen = accelerator.reduce(sums, "sum").tolist()
    found |= {"entropy": entropy / max(1, responses), "mean_token_accuracy": likeliest / max(1, chosen)}
    if len(terms.counts) > 1:
        means = accelerator.reduce(terms.sums.float() / counts.clamp(min=1), "mean").tolist()
        found |= {f"loss/{term.name}": mean for (_, term), mean in zip(trainer.plo_loss.terms, means, strict=True)}
    return found
