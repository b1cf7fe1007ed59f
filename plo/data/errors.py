"""What can be wrong with data: errors that stop the reading, and reasons for which a single row is left out."""

from plo.errors import PloError

# Why a row is dropped: it is bad.
EMPTY = "empty response"
IDENTICAL = "identical responses"
PROMPTS_DIFFER = "prompts differ between the sides"
NOT_UNICODE = "text is not valid Unicode"
HALF_MESSAGES = "one response is a list of messages written as text, the other is prose"
UNREADABLE = "a list of messages written as text cannot be read (JSON lines and Parquet keep lists, CSV does not)"


class DataError(PloError, ValueError):
    """Data that cannot be used. The message names the thing, the place (file and row) and the remedy."""


class BadRow(Exception):
    """A row to be dropped; `reason` is one of the constants of this package."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class Tie(Exception):
    """A sound row that prefers neither response: it is left out and counted, and is not a bad row."""
