"""Token ids of many long texts, kept on disk, so that the next process on a machine reads them instead of tokenising."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plo import caches, store
from plo.identity import sha256
from plo.paths import text_digest

LONG = 200_000  # characters of a call of the tokenizer from which reading its ids is faster
VERSION = 1  # of the content of the files
TOKENS = caches.CACHES["tokens"]


def kept(texts: Sequence[str], tokenizer: Any, special: bool, encode: Callable[[], list[list[int]]]) -> list[list[int]]:
    """Return `encode()`, the ids of `texts`, or read them if the same tokenizer has encoded the same texts before.

    Args:
        special: whether the tokenizer adds its special tokens.
    """
    if sum(map(len, texts)) < LONG or not getattr(tokenizer, "is_fast", False):
        return encode()
    import numpy as np  # neither is needed by a loss by itself
    import transformers

    rules = text_digest(tokenizer.backend_tokenizer.to_str())
    how = [VERSION, transformers.__version__, type(tokenizer).__name__, rules, special]
    path = TOKENS.path(sha256([how, len(texts), text_digest(*map(repr, texts))]))
    if (read := store.read(path, lambda file: _read(file, len(texts)))) is not None:
        return read
    ids = encode()
    flat = np.array([*map(len, ids), *(id for one in ids for id in one)], dtype=np.int32)
    store.write(path, flat.tofile)
    return ids


def _read(file: Path, count: int) -> list[list[int]]:
    import numpy as np

    flat = np.fromfile(file, dtype=np.int32)
    return [part.tolist() for part in np.split(flat[count:], np.cumsum(flat[:count])[:-1])]
