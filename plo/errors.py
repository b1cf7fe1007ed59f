"""The base class of the errors that plo writes for its users."""

import traceback


class PloError(Exception):
    """An error whose message is written for the user: it names the thing, the place and the remedy.

    The command line prints the message without a traceback and exits with code 2. Each package derives its own errors
    from this class and from the built-in exception that a caller would expect (`ValueError`, `LookupError`, ...).
    """


def one_line(error: BaseException, most: int = 400) -> str:
    """Write type and message of an error on one line, and where it was raised unless it is a `PloError`."""
    text = " ".join(str(error).split())
    text = text if len(text) <= most else f"{text[:most]}..."
    where = "" if isinstance(error, PloError) else f" ({raised_at(error)})"
    return f"{type(error).__name__}: {text}{where}"


def reason(error: BaseException) -> str:
    """Return what an error says, without the number and the path that the system adds to errors about files.

    Example:
        >>> reason(FileNotFoundError(2, "No such file or directory", "pairs.jsonl"))
        'No such file or directory'
    """
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def raised_at(error: BaseException) -> str:
    """Return file and line of the innermost call that raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "nowhere"
