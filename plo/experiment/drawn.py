"""Training pairs of a cell that are not the data source's own: sampled, iterated or with flipped labels."""

from dataclasses import dataclass
from typing import Any

from plo.backbone.model import Backbone
from plo.experiment.answers import Answers


@dataclass(frozen=True)
class Drawn:
    """Training pairs of a cell, where they are not the data source's own.

    Attributes:
        answers: the answers that they are made of; None for offline pairs with turned labels.
        queries: oracle queries of this round and those before it.
        about: facts for tables.
        start_kl: KL from the policy of the answers to the policy before the training, nats a response; None: not known.
    """

    answers: Answers | None
    queries: int
    about: dict[str, Any]
    start_kl: float | None = None

    def metrics(self, backbone: Backbone) -> dict[str, float]:
        """Return what tables show of the pairs, given that the backbone holds the trained policy."""
        if self.answers is None:
            return {}
        kl, error = self.answers.kl(backbone)
        found = {
            "oracle_queries": float(self.queries),
            "data_kl_start": self.start_kl,
            "data_kl": kl,
            "data_kl_se": error,
        }
        return {name: value for name, value in found.items() if value is not None and value == value}
