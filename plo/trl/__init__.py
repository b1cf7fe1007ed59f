"""Train any plo loss in a TRL script; model, data, collator, adapters and callbacks stay TRL's.

    trainer = trl.DPOTrainer(...)
    plo.trl.use(trainer, "tbpo_a", beta=0.2)          # or: plo.trl.DPOTrainer(..., loss="tbpo_a(beta=0.2)")
    trainer.train()

plo computes the loss of every batch from the per-token statistics of TRL's own batch. Everything else that a trainer does
is TRL's and transformers'.

The mean over an optimiser step is exact: it is over all its pairs (or tokens: `sft`, and such terms of a sum), over
accumulation and processes (DDP). TRL takes the mean of its micro-batches' means, which is another number where they are
uneven: in a ragged last step, and always for tokens. Logged metrics and evaluation are means of the batches' means, as in
TRL; dropout differs between processes; with several processes the last step repeats rows to give each process some.
`rewards/accuracies` counts a margin that is 0 but for rounding as 1/2 (`plo.margins`), where TRL counts its sign.
"""

from plo import extras

extras.require("train", "plo.trl")

from plo.trl.errors import TRLError
from plo.trl.reference import SummedSide
from plo.trl.trainer import DPOTrainer, use

__all__ = ["DPOTrainer", "SummedSide", "TRLError", "use"]
