"""`Pairs` is the batch that a loss sees: per-token statistics of both responses of every pair."""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from plo.errors import PloError


class MissingStatistic(PloError, LookupError):
    """A loss read a statistic that it did not name in `needs`.

    The error is no AttributeError, which inside a property would be reported as the property's own absence.
    """


class ShapeError(PloError, ValueError):
    """Tensors of a `Side` or of `Pairs` do not fit each other."""


class Side:
    """One response of every pair in the batch, left-aligned: index t is the t-th response token.

    Args:
        logps: (pairs, tokens) nats: log pi(y_t | s_t); carries gradient.
        mask: (pairs, tokens) bool: True on response tokens, EOS included.
        statistics: statistics that the loss named in `needs`, each (pairs, tokens), `hidden` (pairs, tokens, d):
            `ref_logps`, `kl_ref_pi`, `kl_pi_ref`, `entropy` in nats, `log_p2`, `hidden`, `weights`,
            and any statistic registered by `plo.backbone.token_statistics.register_statistic`.

    A statistic with arguments is read by its name in `needs`, `side["logps_at(temperature=1.1)"]`.

    Every statistic is 0 off the mask, whatever was passed there. Reading a missing one raises `MissingStatistic`.

    Example:
        >>> side = Side(logps=torch.tensor([[-1.0, -2.0]]), mask=torch.tensor([[True, False]]))
        >>> side.logp()
        tensor([-1.])
    """

    logps: Tensor
    mask: Tensor
    ref_logps: Tensor
    kl_ref_pi: Tensor
    kl_pi_ref: Tensor
    entropy: Tensor
    log_p2: Tensor
    hidden: Tensor
    weights: Tensor

    def __init__(self, *, logps: Tensor, mask: Tensor, **statistics: Tensor):
        if mask.dtype != torch.bool or mask.dim() != 2:
            raise ShapeError(f"mask must be a bool tensor (pairs, tokens), not {mask.dtype} {tuple(mask.shape)}.")
        for name, values in {"logps": logps, **statistics}.items():
            if values.shape[:2] != mask.shape:
                raise ShapeError(f"{name} is {tuple(values.shape)} where mask is {tuple(mask.shape)}.")
        self.mask = mask
        self._statistics = {name: _on_mask(values, mask) for name, values in {"logps": logps, **statistics}.items()}

    def __getattr__(self, name: str) -> Tensor:
        statistics = self.__dict__.get("_statistics", {})
        if name in statistics:
            return statistics[name]
        if name.startswith("__"):  # copy and pickle look such names up
            raise AttributeError(name)
        raise MissingStatistic(
            f"The statistic {name!r} is missing: name it in the loss's needs=({name!r}, ...), or, for a Side built by "
            f"hand, pass it. Available: {', '.join(sorted(statistics))}."
        )

    def __getitem__(self, name: str) -> Tensor:
        """Return a statistic by its name in `needs`, arguments included."""
        return self.__getattr__(name)

    @property
    def lengths(self) -> Tensor:
        """Number of response tokens, (pairs,), in the dtype of `logps`."""
        return self.mask.sum(-1).to(self.logps.dtype)

    @property
    def log_ratios(self) -> Tensor:
        """Log-ratios of the tokens, (pairs, tokens) nats: D_t = log pi(y_t | s_t) - log ref(y_t | s_t)."""
        return self.logps - self.ref_logps

    def logp(self) -> Tensor:
        """Return (pairs,) nats: log pi(y | x), the sum over response tokens."""
        return self.logps.sum(-1)

    def log_ratio(self) -> Tensor:
        """Return (pairs,) nats: D(y) = sum_t D_t."""
        return self.log_ratios.sum(-1)

    def mean(self, values: Tensor) -> Tensor:
        """Return (pairs,) the mean over response tokens of (pairs, tokens) values that are 0 off the mask."""
        return values.sum(-1) / self.lengths

    def only(self, names: Iterable[str]) -> "Side":
        """Return the same side with `logps` and the named statistics, and no others."""
        return Side(
            mask=self.mask, **{name: self._statistics[name] for name in {"logps", *names} & set(self._statistics)}
        )


class _Completions(dict[str, Side]):
    def __missing__(self, name: str) -> Side:
        raise MissingStatistic(
            f"The completion {name!r} is missing: add it to the loss's needs=('completion:{name}', ...). "
            f"Available: {', '.join(sorted(self)) or 'none'}."
        )


class Pairs:
    """A batch of preference pairs as a loss sees it.

    Args:
        chosen, rejected: the two responses; both share the token dimension (pad the shorter with mask False).
        columns: (pairs,) numeric columns of the data set that the loss needs, `needs=("column:margin",)`.
        progress: share of the training steps done, 0 to 1.

    Attributes:
        completions: one more `Side` for each `needs=("completion:mismatched(side=chosen)",)`: a completion that is not the
            pair's own, after the pair's prompt, with `logps` and `ref_logps`, of which neither carries gradient.
            `with_completions` sets them.
    """

    completions: Mapping[str, Side] = _Completions()

    # Its code is part of the key of every loss that is a class: see plo.identity.
    def __init__(
        self, *, chosen: Side, rejected: Side, columns: Mapping[str, Tensor] | None = None, progress: float = 0.0
    ):
        if chosen.mask.shape != rejected.mask.shape:
            raise ShapeError(
                f"chosen is {tuple(chosen.mask.shape)} and rejected {tuple(rejected.mask.shape)} (pairs, tokens): "
                f"pad the shorter side with mask False."
            )
        self.chosen = chosen
        self.rejected = rejected
        self.columns: Mapping[str, Tensor] = _Columns(columns or {})
        self.progress = progress

    def __len__(self) -> int:
        return len(self.chosen.mask)

    def log_ratio_margin(self) -> Tensor:
        """Return (pairs,) nats: h = D(y_w) - D(y_l)."""
        return self.chosen.log_ratio() - self.rejected.log_ratio()

    def only(self, needs: Iterable[str]) -> "Pairs":
        """Return the same pairs with the statistics, columns and completions named in `needs`, and no others."""
        needs = set(needs)
        completions = {name: side for name, side in self.completions.items() if f"completion:{name}" in needs}
        columns = {name: self.columns[name] for name in self.columns if f"column:{name}" in needs}
        return Pairs(
            chosen=self.chosen.only(needs),
            rejected=self.rejected.only(needs),
            columns=columns,
            progress=self.progress,
        ).with_completions(completions)

    def with_completions(self, completions: Mapping[str, Side]) -> "Pairs":
        """Return the same pairs with these further completions."""
        pairs = copy.copy(self)
        pairs.completions = _Completions(completions)
        return pairs


class _Columns(dict[str, Tensor]):
    def __missing__(self, name: str) -> Tensor:
        raise MissingStatistic(
            f"The column {name!r} is missing: add it to the loss's needs=('column:{name}', ...). "
            f"Available: {', '.join(sorted(self)) or 'none'}."
        )


def _on_mask(values: Tensor, mask: Tensor) -> Tensor:
    off = ~mask if values.dim() == 2 else ~mask[..., None]
    return values.masked_fill(off, 0)
