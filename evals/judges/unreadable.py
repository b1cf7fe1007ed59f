"""Give up a judge whose answers cannot be read, before it is asked hundreds of questions four times each."""

from plo.evals.answers import split_thought
from plo.evals.judges.judge import Judge, JudgeError, Verdict

IN_A_ROW = 20  # unreadable answers after which a judge is given up
ROOM = "A judge that thinks first needs room: openai:MODEL(max_tokens=4096)."
LABEL = (
    "A prompt that requires the label alone (instruction, AlpacaEval's) needs a judge that answers with nothing else; one that "
    "explains first needs a prompt that ends with the label, such as --template helpful (hh.template=helpful)."
)
REMEDY = f"{ROOM} {LABEL}"


class UnreadableStreak:
    """Counts unreadable answers in a row.

    Args:
        read: an earlier answer could be read. Then only questions asked for the first time count, because those asked again
            are the ones that the judge cannot answer.
    """

    def __init__(self, judge: Judge, read: bool):
        self.judge, self.read, self.length = judge, read, 0

    def see(self, verdict: Verdict, *, first: bool) -> None:
        """Count an answer; `first`: its question was asked for the first time.

        Raises:
            JudgeError: `IN_A_ROW` answers in a row could not be read.
        """
        if verdict.p is not None:
            self.read, self.length = True, 0
        elif not verdict.refused and (first or not self.read):
            self.length += 1
        if self.length >= IN_A_ROW:
            last = repr(verdict.answer[:60]) if verdict.answer else "empty"
            raise JudgeError(
                f"{IN_A_ROW} answers in a row of the judge {self.judge.name} could not be read; the last one is {last}. "
                f"{ROOM if split_thought(verdict.answer).open or not verdict.answer else LABEL}"
            )
