"""The error of `plo.trl`."""

from plo.errors import PloError


class TRLError(PloError, ValueError):
    """A trainer, a setting and a loss do not fit each other. The message names the remedy."""
