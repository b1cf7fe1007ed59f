"""Values that a page carries: JSON, compressed, as base64. Nothing between the tags can end the element or begin another."""

import base64
import gzip
import json
import zlib
from typing import Any

from plo.errors import PloError

LARGEST = 2**28  # bytes of JSON that are unpacked: a page from somewhere may be made to fill the memory


class PackedError(PloError, ValueError):
    """A text is not what `pack` made."""


def pack(value: Any) -> str:
    """Return a value of JSON as text of letters, digits, `+`, `/` and `=`. Equal values give equal texts."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode("ascii"), mtime=0)).decode("ascii")


def unpack(text: str) -> str:
    """Return the JSON in what `pack` made.

    Raises:
        PackedError: the text is no such text, or holds more than `LARGEST` bytes.
    """
    reader = zlib.decompressobj(zlib.MAX_WBITS | 16)  # with gzip's head and its checksum
    try:
        found = reader.decompress(base64.b64decode(text, validate=True), LARGEST)
    except zlib.error as error:
        raise PackedError(str(error)) from error
    if not reader.eof:
        raise PackedError(f"it is cut, or has more than {LARGEST:,} bytes")
    return found.decode("utf-8")
