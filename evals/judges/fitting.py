"""Shorten questions longer than a model's context: cut the middle of the longer texts and mark the cut."""

from collections.abc import Callable, Sequence

from plo.evals.judges.judge import JudgeError

MARK = "\n[... {} characters left out ...]\n"


def fit_texts(judge: str, texts: Sequence[str], count: Callable[..., int], room: int) -> tuple[str, ...]:
    """Return the texts, with the middle of the longer ones cut until `count(*texts) <= room`.

    Args:
        judge: the judge's name, for messages.
        count: function that returns the length of the question with these texts, in the unit of `room`.

    Raises:
        JudgeError: the judge's prompt alone leaves no room.
    """
    cap, cut = max(map(len, texts)), tuple(texts)
    while (length := count(*cut)) > room:
        if cap == 0:
            raise JudgeError(
                f"The judge {judge} has room for {room}, and its prompt alone takes {length}: use a judge with a "
                f"longer context, or a shorter prompt."
            )
        cap = int(cap * 0.95 * max(room, 0) / length)
        cut = tuple(_shortened(text, cap) for text in texts)
    return cut


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    head = (longest + 1) // 2
    return text[:head] + MARK.format(len(text) - longest) + text[len(text) - (longest - head) :]
