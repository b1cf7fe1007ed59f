"""`Origin` says where the training pairs of a variant come from: a data source or samples of a policy, with or without noise."""

import re
from dataclasses import dataclass, replace
from typing import Any

from plo.errors import PloError

OFFLINE, SAMPLED = "offline", "sampled"
_ITERATED = re.compile(r"iterated\((\d+)\)")


class OriginError(PloError, ValueError):
    """A text names no origin of training pairs, or a share of turned labels is none."""


@dataclass(frozen=True)
class Origin:
    """Origin of training pairs.

    Attributes:
        round: 0 for the pairs of the data source; 1 for answers of the policy that training starts from; r for answers of the
            model that round r - 1 trained.
        flip: share of the training labels that are turned round, in [0, 1).
    """

    round: int = 0
    flip: float = 0.0

    @classmethod
    def read(cls, data: str = OFFLINE, flip: float = 0.0) -> "Origin":
        """Read "offline", "sampled" or "iterated(n)".

        Raises:
            OriginError: the text is none of them, or `flip` is not in [0, 1).

        Example:
            >>> Origin.read("iterated(2)").round, Origin.read("iterated(1)").name
            (2, 'sampled')
        """
        found = _ITERATED.fullmatch(str(data).strip())
        rounds = {OFFLINE: 0, SAMPLED: 1}.get(str(data).strip(), int(found[1]) if found else -1)
        if rounds < 0 or (found and rounds == 0):
            raise OriginError(f"data={data!r} is no origin of training pairs: write offline, sampled or iterated(2).")
        if isinstance(flip, bool) or not isinstance(flip, int | float) or not 0 <= flip < 1:
            raise OriginError(f"flip={flip!r} is no share of turned labels: write a number in [0, 1), such as 0.2.")
        return cls(rounds, float(flip))

    @property
    def name(self) -> str:
        """Name of where the pairs come from: "offline", "sampled" or "iterated(r)"."""
        return (OFFLINE, SAMPLED)[self.round] if self.round < 2 else f"iterated({self.round})"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings `data` and `flip`, as far as they differ from offline pairs with their own labels."""
        return {**({"data": self.name} if self.round else {}), **({"flip": self.flip} if self.flip else {})}

    @property
    def rounds(self) -> "list[Origin]":
        """The rounds up to this one, each of which the next one needs; offline pairs are their own only round."""
        return [replace(self, round=number) for number in range(1, self.round + 1)] or [self]
