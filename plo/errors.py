"""The base class of every error that plo words for its users."""


class PloError(Exception):
    """An error whose message is written for the user: it names the thing, the place and the remedy.

    The command line prints the message without a traceback and exits with code 2. Each package derives its own errors
    from this class and from the built-in exception that a caller would expect (`ValueError`, `LookupError`, ...).
    """
