"""Preference losses, one file per family. Importing this package imports every file of it, which registers its losses."""

import importlib
import pkgutil

from plo.losses.generators import GENERATORS, register_generator
from plo.losses.get import get_loss
from plo.losses.loss import Loss, LossSum, LossValue
from plo.losses.numbers import NonNegative, Positive, Share, Smoothing
from plo.losses.register import LOSSES, LossError, register_loss

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

LOSSES.alias("sigmoid", of="dpo")  # TRL's name; its other names are the same here
LOSSES.alias("r_dpo", of="length_dpo")
LOSSES.alias("slic", of="hinge")
LOSSES.alias("KTO", of="kto")

TI_DPO = (
    "TI-DPO is not here: it samples an anchor and takes gradient weights at each step, which weights made once before "
    "training cannot replace. docs/guides/not-built.md says what is missing."
)
RTO = (
    "RTO is not here: it is PPO, with a DPO model's log-ratios as token rewards, and a loss of pairs draws no answers. The scorer "
    "log_ratio makes these rewards; docs/guides/not-built.md says what is missing."
)
MAPO = (
    "MaPO is not here: it aligns diffusion models, without a reference. `mappo` reads scores of the data set, and is "
    "another method (MaPPO)."
)
BNF = (
    "BNF is not here: its target is a distribution over the whole vocabulary, for which its authors released no code. "
    "docs/guides/not-built.md says what is missing."
)
LOSSES.absent |= {"bnf": BNF, "BNF": BNF} | dict.fromkeys(("ti_dpo", "ti-dpo", "tidpo", "TI-DPO"), TI_DPO)
LOSSES.absent |= dict.fromkeys(("rto", "RTO"), RTO)
LOSSES.absent |= {"mapo": MAPO, "MaPO": MAPO}

__all__ = [
    "GENERATORS",
    "LOSSES",
    "Loss",
    "LossError",
    "LossSum",
    "LossValue",
    "NonNegative",
    "Positive",
    "Share",
    "Smoothing",
    "get_loss",
    "register_generator",
    "register_loss",
]
