"""Errors that stop the reading of data, and reasons for which a single row is dropped."""

from plo.errors import PloError

# Reasons to drop a row.
EMPTY = "empty response"
IDENTICAL = "identical responses"
PROMPTS_DIFFER = "prompts differ between the sides"
NOT_UNICODE = "text is not valid Unicode"
HALF_MESSAGES = "one response is a list of messages written as text, the other is prose"
UNREADABLE = "a list of messages written as text cannot be read (JSON lines and Parquet keep lists, CSV does not)"


class DataError(PloError, ValueError):
    """The data cannot be used. The message names the thing, the place (file and row) and the remedy."""


class BadRow(Exception):
    """The row must be dropped; `reason` is one of the constants of `plo.data.errors` or `plo.data.tokenize`."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class Tie(Exception):
    """The row prefers neither response. Ties are left out and counted; they are not bad rows."""
