"""State of losses: buffers that are updated once an optimiser step from the statistics of all its pairs."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from plo import distributed
from plo.losses import Loss
from plo.pairs import Pairs, Side

Observed = dict[str, Tensor]  # name -> (pairs,)


class LossState:
    """Collects what the state of a loss depends on over the micro-batches of a step, and updates it once, in all processes.

    A step has the same pairs whatever the micro-batches and the number of processes, so the state does not depend on them.

    Args:
        loss: a loss or a sum, each of whose terms has a state of its own.
    """

    def __init__(self, loss: Loss):
        self._terms = [term for _, term in loss.terms if term.updated]
        self._seen: dict[Loss, list[Observed]] = {term: [] for term in self._terms}

    @property
    def needs_first_pass(self) -> bool:
        """True if the loss of a step needs a state that depends on all of the step's pairs."""
        return any(term.updated == "before" and not term.observes_completions for term in self._terms)

    def observe_completions(self, completions: Mapping[str, Side], filler: bool) -> None:
        """Take the completions of a micro-batch that are not its pairs' own; those of a filler count for nothing."""
        for term in self._terms:
            if term.observes_completions and not filler:
                self._seen[term].append(term.observe_completions(completions))

    def observer(self, filler: bool, *, first: bool = False, whole: bool = False) -> Callable[[Pairs], None] | None:
        """Return what a forward pass of a micro-batch hands its pairs to; None if no state depends on pairs.

        Args:
            filler: whether the micro-batch counts for nothing.
            first: whether this is the pass without gradient before the step, else the one with gradient.
            whole: whether the pass with gradient is the only one of its process: then it updates what is updated before.
        """
        moments = ("before",) if first else ("before", "after") if whole else ("after",)
        terms = [term for term in self._terms if term.updated in moments and not term.observes_completions]
        if not terms:
            return None

        def observe(pairs: Pairs) -> None:
            for term in terms:
                if not filler:
                    self._seen[term].append(term.observe(pairs))
            if whole and self.needs_first_pass:
                self.update("before")

        return observe

    def update(self, when: str) -> None:
        """Update the state of the terms that is updated at this moment; all processes must call it together."""
        terms = [term for term in self._terms if term.updated == when]
        if not terms:
            return
        mine = [[_on_cpu(observed) for observed in self._seen[term]] for term in terms]
        for term, parts in zip(terms, zip(*distributed.gather(mine), strict=True), strict=True):
            self._seen[term] = []
            whole = [observed for part in parts for observed in part]
            device = next(term.buffers()).device
            term.update({name: torch.cat([part[name] for part in whole]).to(device) for name in whole[0]})


def _on_cpu(observed: Observed) -> Observed:
    return {name: values.cpu() for name, values in observed.items()}
