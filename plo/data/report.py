"""The report of reading: formats, dropped rows with reasons and examples, and remarks."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from plo.data.errors import UNREADABLE, DataError

EXAMPLES = 3  # maximum number shown for each reason
CHANCE = 2  # so few bad rows are not extrapolated to rows that a limit left untokenised
MAX_BAD_SHARE = 0.05


@dataclass
class DropReport:
    """Counts of rows read and dropped, by reason, with up to three examples each (place and excerpt).

    Rows are dropped in two stages: when read, and when tokenised. With a limit fewer rows are tokenised
    than read.

    Args:
        source: name of the data, for messages.
        rows: rows read.
        tokenised: rows tokenised.
        dropped: rows dropped by stage, "read" and "tokenised".
        ties: rows that prefer neither response; they are left out.
        read_as: {format and what became of its columns: rows}, for formats other than plo's own.
        remarks: {words that follow the number of rows: rows}, for other remarks.
        unused: columns of text that nothing reads, in the order of their appearance.
        duplicates: rows that repeat an earlier one exactly; they are kept.
        contradictions: pairs of responses to one prompt that are preferred both ways round; they are kept.
    """

    source: str = "data"
    rows: int = 0
    tokenised: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: defaultdict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    dropped: Counter[str] = field(default_factory=Counter)
    ties: int = 0
    read_as: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    unused: dict[str, None] = field(default_factory=dict)
    duplicates: int = 0
    contradictions: int = 0

    def add(self, reason: str, where: str, excerpt: str, *, stage: str = "read") -> None:
        """Count one dropped row; `stage` is "read" or "tokenised"."""
        self.counts[reason] += 1
        if self.counts[reason] <= EXAMPLES:
            self.examples[reason].append((where, excerpt))
        self.dropped[stage] += 1

    @property
    def total(self) -> int:
        return self.dropped.total()

    @property
    def share(self) -> float:
        """Share of bad rows in [0, 1], extrapolated to rows that a limit left untokenised.

        One or two bad rows are not extrapolated: they may be chance.
        """
        read = self.dropped["read"] / max(self.rows, 1)
        if self.dropped["tokenised"] <= CHANCE:
            return self.total / max(self.rows, 1)
        return read + (1 - read) * self.dropped["tokenised"] / max(self.tokenised, 1)

    @property
    def notes(self) -> list[str]:
        """Remarks on how the rows were read, a line each."""
        lines = [f"{count} rows read as {how}" for how, count in self.read_as.items()]
        counts = {
            "rows prefer neither response (ties); they are left out": self.ties,
            "rows repeat an earlier row exactly; they are kept": self.duplicates,
            "pairs of responses are preferred both ways round; they are kept": self.contradictions,
        }
        lines += [f"{count} {words}" for words, count in {**self.remarks, **counts}.items() if count]
        if self.unused:
            lines.append(f"columns of text that are not used: {', '.join(self.unused)}")
        return lines

    def enforce(self, strict: bool = False) -> None:
        """Raise if more than 5% of the rows are bad, or any with `strict`.

        Raises:
            DataError: too many are; the message has counts and examples.
        """
        if self.total and (strict or self.share > MAX_BAD_SHARE):
            allowed = "strict allows none" if strict else f"at most {MAX_BAD_SHARE:.0%} may be"
            remedy = "Mend or remove these rows in the source"
            if self.dropped["tokenised"]:
                remedy += ", or raise data.max_length where truncation is the reason"
            if UNREADABLE in self.counts:
                remedy += ", or save it as JSON lines or Parquet"
            if strict:
                remedy += ", or leave strict out to have them dropped"
            found = f"{self.dropped['read']} of {self.rows} rows read"
            if self.tokenised:
                found += f" and {self.dropped['tokenised']} of {self.tokenised} rows tokenised so far"
            raise DataError(f"{self.source}: {found} are bad ({self.share:.1%}), {allowed}.\n{self}\n{remedy}.")

    def __str__(self) -> str:
        if not self.total:
            return f"{self.source}: no rows dropped of {self.rows}."
        lines = [f"{self.source}: {self.total} of {self.rows} rows dropped"]
        for reason, count in self.counts.items():
            lines.append(f"  {count} x {reason}")
            lines += [f"      {where}: {excerpt}" for where, excerpt in self.examples[reason]]
        return "\n".join(lines)
