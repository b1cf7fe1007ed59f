"""MLflow's limits on names and texts. What is cut gets a hash, so that different texts stay different; tags lose nothing."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from plo.paths import text_digest

T = TypeVar("T")
NAME, PARAMETER, TAG, DATASET = 250, 6000, 5000, 500  # characters; servers before MLflow 2.8 take tags of 5000
METRICS, OTHERS = 1000, 100  # metrics, and parameters or tags, of one call
BYTES = 400_000  # of JSON of one call (MLflow: 1 MB, of which names of fields are a part)
PART = " part "  # between the name of a tag and the number of a further part of its value


def allowed_name(name: str, most: int = NAME) -> str:
    """Return the name in the characters, and cut to the length, that MLflow allows."""
    allowed = re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)
    return allowed if len(allowed) <= most else _marked(allowed, name, most)


def shortened(text: str, most: int) -> str:
    """Return the text, cut to `most` characters with a hash at its end if it is longer, as text that PostgreSQL takes."""
    clean = _clean(text)
    return clean if len(clean) <= most else _marked(clean, text, most)


def tag_parts(name: str, text: str) -> dict[str, str]:
    """Return the tags that hold a text of any length: {"plo.tuning": first part, "plo.tuning part 2": second part}.

    The last part is shorter than the others, so that a reader knows where a text ends even if it was longer before.
    """
    name, clean = allowed_name(name, NAME - 10), _clean(text)
    parts = [clean[start : start + TAG] for start in range(0, len(clean) + 1, TAG)]
    return {name if i == 0 else f"{name}{PART}{i + 1}": part for i, part in enumerate(parts)}


def whole_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags with the texts that `tag_parts` divided in one piece."""
    whole, further = dict[str, str](), set[str]()
    for name, text in tags.items():
        part, number = text, 2
        while len(part) == TAG and (following := f"{name}{PART}{number}") in tags:
            part, number = tags[following], number + 1
            text += part
            further.add(following)
        whole[name] = text
    return {name: text for name, text in whole.items() if name not in further}


def batches(items: Sequence[T], size: Callable[[T], int], most: int = OTHERS) -> Iterator[list[T]]:
    """Iterate over lists of at most `most` items and `BYTES` in all; `size(item)` is the number of bytes of one."""
    batch, taken = list[T](), 0
    for item in items:
        if batch and (len(batch) == most or taken + size(item) > BYTES):
            yield batch
            batch, taken = [], 0
        batch.append(item)
        taken += size(item)
    if batch:
        yield batch


def flat(nested: Mapping[str, Any]) -> dict[str, str]:
    """Return {"data.name": "1"} for {"data": {"name": 1}}, in names and values that MLflow takes.

    Two names that differ only in characters that MLflow does not allow both stay, the second with a hash.
    """
    found: dict[str, str] = {}
    for name, value in _leaves(nested):
        allowed = allowed_name(name)
        if allowed in found:
            allowed = _marked(allowed, name, NAME)
        found[allowed] = shortened(str(value), PARAMETER)
    return found


def _marked(text: str, whole: str, most: int) -> str:
    return f"{text[: most - 19]}...{text_digest(_clean(whole))[:16]}"


def _clean(text: str) -> str:
    """Return the text without NUL, which PostgreSQL refuses, and without lone surrogates, which are no Unicode."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")


def _leaves(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
