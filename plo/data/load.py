"""Load preference data: tokenised training and held-out pairs, with a report and fingerprints."""

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.text import Text

from plo.configured import check_values
from plo.data.errors import DataError
from plo.data.reading import read_rows
from plo.data.report import DropReport
from plo.data.rows import Row, to_chat
from plo.data.sources import SOURCES
from plo.data.split import is_for_tuning, row_digest, split_is_fixed, split_rows
from plo.data.tokenize import COUNTS, TRUNCATIONS, Pair, check_tokenizer, template_of, tokenize_rows
from plo.paths import text_digest


@dataclass(frozen=True)
class PreferenceData:
    """Tokenised preference pairs, ready to train on.

    Args:
        train: training pairs, in the order of their rows' hashes.
        eval: held-out pairs, likewise; no prompt of theirs is in `train`.
        report: what was dropped and why.
        stats: numbers of rows and pairs read, dropped and kept; truncation and EOS are counted over kept pairs.
        fingerprints: sha256 of "rows", "template" and "tokens", both splits together.
        digest: sha256 of the three: the same on every machine.
    """

    train: list[Pair]
    eval: list[Pair]
    report: DropReport
    stats: dict[str, int]
    fingerprints: dict[str, str]
    digest: str

    def split_for_tuning(self) -> tuple["PreferenceData", "PreferenceData"]:
        """Return the data with the held-out prompts that serve tuning, and with those that serve the final table.

        Raises:
            DataError: there are too few held-out prompts for both.
        """
        tune = [pair for pair in self.eval if is_for_tuning(pair.prompt)]
        test = [pair for pair in self.eval if not is_for_tuning(pair.prompt)]
        if not tune or not test:
            raise DataError(
                f"{self.report.source}: tuning needs held-out prompts of its own, and only {len(self.eval)} pairs are held "
                f"out. Raise data.eval_fraction."
            )
        return self._with_eval(tune, "tune"), self._with_eval(test, "test")

    def _with_eval(self, pairs: list[Pair], name: str) -> "PreferenceData":
        return replace(self, eval=pairs, digest=text_digest(f"{self.digest} {name}"))

    def summary(self) -> Text:
        """Return a summary of what was loaded, for a console or for `str`."""
        s = self.stats
        lines = [
            f"{self.report.source}: {s['train_pairs']} training pairs ({s['train_prompts']} prompts), "
            f"{s['eval_pairs']} held out ({s['eval_prompts']} prompts), digest {self.digest[:12]}"
        ]
        notes = {
            "truncated_prompts": "prompts truncated",
            "truncated_responses": "responses truncated",
            "responses_without_eos": "responses without EOS",
            "merged_boundaries": "prompts whose last token merges with a response",
            "rewritten_prompts": f"prompts that the chat template ends differently once a response follows: "
            f"{s['rewritten_tokens']} tokens are cut off them, and what it writes instead is trained as part of the response",
            "rows_with_special_tokens": "rows whose text holds a special token, tokenised as that token",
            "train_rows_with_eval_prompt": "training rows left out, as their prompt is held out",
            "dated_template": "chat template prints today's date: tokens and digest change from day to day",
        }
        lines += [f"  {line}" for line in self.report.notes]
        if self.report.read_as and (row := self.train[0].row) and not row.conversational:
            lines.append(
                "  prompts and responses are plain text, one after the other; data.options: {chat: true} makes messages"
            )
        lines += [f"  {s[name]} {words}" for name, words in notes.items() if s[name]]
        return Text("\n".join(lines + ([str(self.report)] if self.report.total else [])))


def load_data(
    source: str,
    path: str | Path | None = None,
    *,
    tokenizer: Any,
    eval_fraction: float = 0.1,
    limit: int | None = None,
    eval_limit: int | None = None,
    max_length: int = 512,
    truncation: str = "keep_start",
    strict: bool = False,
    options: dict[str, Any] | None = None,
    columns: Mapping[str, str | None] | None = None,
    ends: Collection[int] = (),
) -> PreferenceData:
    """Read, check, split and tokenise preference pairs.

    Args:
        source: a registered source, a file or folder, or a hub data set "org/name".
        path: local file or folder of a registered source.
        eval_fraction: share of the prompts held out, by hash, in [0, 1); ignored if the source fixes both splits.
        limit: maximum number of training pairs; the first ones in hash order are kept.
        eval_limit: maximum number of held-out pairs.
        max_length: maximum number of tokens of prompt and response together.
        truncation: "keep_start" or "keep_end".
        strict: raise for any bad row; otherwise only if more than 5% are bad.
        options: options of the source. Every source has `chat=True`, which makes plain rows conversational.
        columns: the source's name for each column that plo reads, such as {"prompt": "question"}; None leaves a
            column out.
        ends: ids that end a response in addition to the tokenizer's EOS, such as those of `generation_config`.

    Raises:
        DataError: the data cannot be used.
        HyperParameterError: an option's value is of another type than the source takes, or out of range.

    Example:
        >>> data = load_data("hh", "hh/harmless-base_test.jsonl.gz", tokenizer=tokenizer)  # doctest: +SKIP
    """
    _check_arguments(eval_fraction, limit, eval_limit, max_length, truncation)
    options = dict(options or {})
    chat = options.pop("chat", False)
    if not isinstance(chat, bool):
        raise DataError(f"The option data.options.chat is {chat!r}. Give true or false.")
    if source in SOURCES:
        options = check_values("data source", SOURCES[source], options)
    report = DropReport(f"{source} ({path})" if path is not None else source)
    rows = read_rows(source, path, options, report, columns)
    report.enforce(strict)
    conversational = chat or _one_form(rows)
    check_tokenizer(tokenizer, conversational)
    train_rows, eval_rows, left_out = split_rows(rows, eval_fraction)
    if chat:  # done after the split: the same prompts are held out with and without it
        train_rows, eval_rows = ([to_chat(row) for row in part] for part in (train_rows, eval_rows))
    counts: Counter[str] = Counter()
    tokenized = [
        _kept(tokenize_rows(part, tokenizer, max_length, truncation, ends), most, report, counts)
        for part, most in ((train_rows, limit), (eval_rows, eval_limit))
    ]
    report.enforce(strict)
    _check_splits(tokenized, rows, report.source, eval_fraction)
    train, held = ([pair for _, pair in part] for part in tokenized)
    template = (template_of(tokenizer) or "") if conversational else "plain"
    stats = {
        "rows": report.rows,
        "dropped": report.total,
        "train_pairs": len(train),
        "eval_pairs": len(held),
        "train_prompts": len({pair.prompt for pair in train}),
        "eval_prompts": len({pair.prompt for pair in held}),
        **{name: counts[name] for name in COUNTS},
        "train_rows_with_eval_prompt": left_out,
        "dated_template": int("strftime_now" in template),
    }
    fingerprints = {
        "rows": text_digest(*(f"{split}:{row_digest(row)}" for split, part in enumerate(tokenized) for row, _ in part)),
        "template": text_digest(template),
        "tokens": _token_digest([train, held]),
    }
    return PreferenceData(train, held, report, stats, fingerprints, text_digest(*fingerprints.values()))


def _one_form(rows: list[Row]) -> bool:
    """Return whether the rows are conversational.

    Raises:
        DataError: some are, others are not.
    """
    for row in rows:
        if row.conversational != rows[0].conversational:
            raise DataError(
                f"Rows of plain text and of messages are mixed: {rows[0].where} and {row.where}. "
                f"Read all as messages with data.options: {{chat: true}}, or separate them."
            )
    return rows[0].conversational


def _kept(
    tokenised: Iterable[tuple[Row, Pair | str, Counter[str]]],
    limit: int | None,
    report: DropReport,
    counts: Counter[str],
) -> list[tuple[Row, Pair]]:
    """Return at most `limit` pairs with their rows, and record the dropped rows and the counts of the kept ones."""
    kept: list[tuple[Row, Pair]] = []
    for row, pair, what in tokenised:
        report.tokenised += 1
        if isinstance(pair, str):
            report.add(pair, row.where, row.excerpt, stage="tokenised")
            continue
        counts.update(what)
        kept.append((row, pair))
        if len(kept) == limit:
            break
    return kept


def _check_arguments(
    eval_fraction: float, limit: int | None, eval_limit: int | None, max_length: int, truncation: str
) -> None:
    if not 0 <= eval_fraction < 1 or math.isnan(eval_fraction):
        raise DataError(f"data.eval_fraction is {eval_fraction}. Give a share in [0, 1), such as 0.1.")
    for name, value, least in (("limit", limit, 1), ("eval_limit", eval_limit, 1), ("max_length", max_length, 2)):
        if value is not None and value < least:
            raise DataError(f"data.{name} is {value}. Give {least} or more.")
    if truncation not in TRUNCATIONS:
        raise DataError(f"data.truncation is {truncation!r}. Choose {' or '.join(map(repr, TRUNCATIONS))}.")


def _check_splits(tokenized: list[list], rows: list[Row], source: str, eval_fraction: float) -> None:
    train, held = map(len, tokenized)
    if train and (held or not eval_fraction):
        return
    fixed = split_is_fixed(rows)
    if not train:
        found = f"no training pairs are left ({held} held out)"
        remedy = "Lower data.eval_fraction" if held else "Raise data.max_length"
        if fixed:
            remedy = "The source fixes what is held out: leave its split out with data.columns: {split: null}"
    else:
        found = f"no pair is held out of {train}"
        remedy = f"Raise data.eval_fraction ({eval_fraction})"
        if fixed:
            remedy = "The source fixes what is held out, and all of that was dropped: raise data.max_length"
    raise DataError(f"{source}: {found}. {remedy}, or add rows.")


def _token_digest(splits: list[list[Pair]]) -> str:
    digest = hashlib.sha256()
    for pairs in splits:
        digest.update(f"split {len(pairs)}\n".encode())
        for pair in pairs:
            for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
                digest.update(f"{','.join(map(str, ids))};".encode())  # as text, which has no byte order
    return digest.hexdigest()
