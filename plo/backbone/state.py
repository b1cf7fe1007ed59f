"""State of losses: buffers that are updated once an optimiser step from the statistics of all its pairs."""

from collections.abc import Callable

import torch
from torch import Tensor

from plo import distributed
from plo.losses import Loss
from plo.losses.register import UPDATES
from plo.pairs import Pairs

Observed = dict[str, Tensor]  # name -> (pairs,)


class LossState:
    """Collects what the state of a loss depends on over the micro-batches of a step, and updates it once, in all processes.

    A step has the same pairs whatever the micro-batches and the number of processes, so the state does not depend on them.

    Args:
        loss: a loss or a sum, each of whose terms has a state of its own.
    """

    def __init__(self, loss: Loss):
        self._terms = {when: [term for _, term in loss.terms if term.updated == when] for when in UPDATES}
        self._seen: dict[str, list[list[Observed]]] = {when: [[] for _ in terms] for when, terms in self._terms.items()}

    def is_updated(self, when: str) -> bool:
        """Return whether a term of the loss updates its state at this moment, "before" or "after" a step."""
        return bool(self._terms[when])

    def observer(self, filler: bool, *, first: bool = False, whole: bool = False) -> Callable[[Pairs], None] | None:
        """Return what a forward pass of a micro-batch hands its pairs to; None if the loss keeps no state.

        Args:
            filler: whether the micro-batch counts for nothing.
            first: whether this is the pass without gradient before the step, else the one with gradient.
            whole: whether the pass with gradient is the only one of its process: then it updates what is updated before.
        """
        if not any(self._terms.values()):
            return None

        def observe(pairs: Pairs) -> None:
            for when in ("before",) if first else ("before", "after") if whole else ("after",):
                if not filler:
                    for term, seen in zip(self._terms[when], self._seen[when], strict=True):
                        seen.append(term.observe(pairs))
            if whole:
                self.update("before")

        return observe

    def update(self, when: str) -> None:
        """Update the state from what was observed in all processes, which must call it at the same moment."""
        if not self.is_updated(when):
            return
        mine = [[_on_cpu(observed) for observed in seen] for seen in self._seen[when]]
        self._seen[when] = [[] for _ in self._terms[when]]
        for term, parts in zip(self._terms[when], zip(*distributed.gather(mine), strict=True), strict=True):
            whole = [observed for part in parts for observed in part]
            device = next(term.buffers()).device
            term.update({name: torch.cat([part[name] for part in whole]).to(device) for name in whole[0]})


def _on_cpu(observed: Observed) -> Observed:
    return {name: values.cpu() for name, values in observed.items()}
