"""Train any plo loss in a TRL script; model, data, collator, adapters and callbacks stay TRL's.

    trainer = trl.DPOTrainer(...)
    plo.trl.use(trainer, "tbpo_a", beta=0.2)          # or: plo.trl.DPOTrainer(..., loss="tbpo_a(beta=0.2)")
    trainer.train()

plo computes the loss of every batch from the per-token statistics of TRL's own batch. The mean over an optimiser step is
exact: over all its pairs, or tokens for a token-level loss, of all micro-batches and processes (DDP). TRL takes the mean of
its micro-batches' means instead. Logged metrics and evaluation are means of the batches' means, as in TRL.
`rewards/accuracies` counts a margin that is 0 but for rounding as 1/2 (`plo.margins`), where TRL counts its sign.
"""

from plo import extras

extras.require("train", "plo.trl")

from plo.trl.errors import TRLError
from plo.trl.reference import SummedSide
from plo.trl.trainer import DPOTrainer, use

__all__ = ["DPOTrainer", "SummedSide", "TRLError", "use"]
