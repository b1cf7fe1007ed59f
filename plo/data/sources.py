"""Sources of rows: registered ones, files and folders by path, hub data sets by name."""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt

from plo import extras
from plo.data import shapes
from plo.data.errors import DataError
from plo.data.files import READERS, read_path
from plo.data.rows import split_of
from plo.data.shapes import Raw
from plo.pocket import pairs as pocket_pairs
from plo.registry import Registry, RegistryError, hyper_parameters


@dataclass(frozen=True)
class SourceFacts:
    """Facts that `register_source` declares.

    Attributes:
        gold: the evaluation that is the known reward of the source's task.
        seeded: whether an experiment draws other pairs for every seed, through the source's option `seed`.
    """

    gold: str | None = None
    seeded: bool = False


SOURCES = Registry("data source", group="plo.sources", facts=SourceFacts)
SENTIMENT = Path(__file__).parent / "sentiment" / "pairs.jsonl"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def register_source(name: str, *, gold: str | None = None, seeded: bool = False, replace: bool = False) -> Callable:
    """Register a function `(path: Path | None, *, options...)` that yields raw rows, each with `where`.

    The keyword-only arguments are the options of the source. A raw row is a mapping in one of the forms of
    `plo.data.rows.to_row`; what comes beside them as numbers becomes the row's columns. A source with `seeded=True` has an
    option `seed`, which an experiment sets to the seed of each cell unless data.options does.

    Example:
        >>> @register_source("two_rows")
        ... def two_rows(path):
        ...     for i in range(2):
        ...         yield {"prompt": f"{i} + 1 =", "chosen": f" {i + 1}", "rejected": " 7", "where": f"two_rows[{i}]"}
    """
    return SOURCES.register(name, facts=SourceFacts(gold, seeded), replace=replace)


def read_source(source: str, path: str | Path | None, options: dict[str, Any]) -> Iterator[Raw]:
    """Read the raw rows of a registered source, of a file or folder, or of a hub data set ("org/name").

    Raises:
        DataError: there is no such source, or it has no such option, or nothing to read.
    """
    if path is None and source not in SOURCES and Path(source).exists():
        source, path = "file", source
    elif source not in SOURCES and _HUB_NAME.fullmatch(source) and Path(source).suffix not in (*READERS, ".gz"):
        source, options = ("hub", {"name": source, **options}) if path is None else ("file", options)
    try:
        entry = SOURCES[source]
    except RegistryError as error:
        if source in SOURCES:
            raise
        raise DataError(f"{error} Or give an existing file or folder, or a hub data set as 'org/name'.") from error
    function = entry.load()
    known = hyper_parameters(function)
    if unknown := sorted(set(options) - set(known)):
        has = ", ".join(["chat", *known])
        raise DataError(f"The data source {source!r} has no option {', '.join(map(repr, unknown))}; it has: {has}.")
    if lacking := [name for name, p in known.items() if p.default is p.empty and name not in options]:
        raise DataError(
            f"The data source {source!r} needs the option {', '.join(map(repr, lacking))}. Set data.options: "
            f"{{{lacking[0]}: ...}}."
        )
    return function(Path(path).expanduser() if path is not None else None, **options)


@register_source("file")
def file(path: Path | None) -> Iterator[Raw]:
    """Read a file or a folder of files: .jsonl, .json, .csv, .tsv (each also .gz), .parquet; or a folder of `save_to_disk`."""
    if path is None:
        raise DataError("The data source 'file' needs a path. Give the file or folder itself as data.source.")
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        yield from _saved_to_disk(path)
    else:
        yield from read_path(path)


@register_source("hub")
def hub(
    path: Path | None,
    *,
    name: str,
    config: str | None = None,
    data_dir: str | None = None,
    split: str | None = None,
    revision: str | None = None,
) -> Iterator[Raw]:
    """Read a hub data set: its train, eval, test and validation splits, or one `split`, which plo splits by hash."""
    if path is not None:
        raise DataError("The data source 'hub' takes no path. Give the file or folder itself as data.source.")
    yield from _load(name, splits=None, name=config, data_dir=data_dir, split=split, revision=revision)


@register_source("hh")
def hh(path: Path | None, *, subset: str | None = None) -> Iterator[Raw]:
    """Read Anthropic HH (`Anthropic/hh-rlhf`), from the hub or from a local file or folder.

    A side is a whole dialogue; its prompt is everything up to and including the last "\\n\\nAssistant:".

    Args:
        subset: folder of the data set ("harmless-base", "helpful-base", ...), on the hub or in `path`; None
            for all.
    """
    if path is None:
        rows = _load("Anthropic/hh-rlhf", splits=("train", "test"), data_dir=subset)
    else:
        rows = read_path(path / subset if subset else path)
    for raw in rows:
        yield shapes.hh(raw)


@register_source("tldr")
def tldr(path: Path | None) -> Iterator[Raw]:
    """Read TL;DR human comparisons: `trl-lib/tldr-preference`, which needs no loading script, or local files.

    Local rows may have that form (prompt, chosen, rejected), or input_text, candidate_0, candidate_1 and
    choice (0 or 1).
    """
    yield from _load("trl-lib/tldr-preference", splits=("train", "validation")) if path is None else read_path(path)


@register_source("ultrafeedback")
def ultrafeedback(path: Path | None) -> Iterator[Raw]:
    """Read UltraFeedback: the preference splits of `HuggingFaceH4/ultrafeedback_binarized`, or local files."""
    if path is None:
        yield from _load("HuggingFaceH4/ultrafeedback_binarized", splits=("train_prefs", "test_prefs"))
        return
    # A copy of the hub's folder also has splits for SFT and generation.
    preferences = path.is_dir() and any("_prefs" in file.name for file in path.rglob("*"))
    for raw in read_path(path, lambda file: "_prefs" in file.name or not preferences):
        raw.pop("messages", None)
        yield raw


@register_source("helpsteer")
def helpsteer(
    path: Path | None,
    *,
    name: str = "nvidia/HelpSteer2",
    attribute: Literal["helpfulness", "correctness", "coherence", "complexity", "verbosity"] = "helpfulness",
) -> Iterator[Raw]:
    """Read HelpSteer2 or HelpSteer, whose rows are single responses with five ratings each, from the hub or from local files.

    Responses to one prompt follow each other. The best and the last of them make a pair, and a prompt whose responses are rated
    alike is a tie, which is left out. The ratings of both are columns, such as `verbosity_chosen` and `verbosity_rejected`.

    Args:
        name: the hub data set, nvidia/HelpSteer2 (two responses a prompt) or nvidia/HelpSteer (up to four).
        attribute: the rating that decides, and that `score_chosen`, `score_rejected` and `margin` are.
    """
    # A copy of the hub's folder also has preferences, which are rows of another kind.
    rows = (
        _load(name, ("train", "validation"))
        if path is None
        else read_path(path, lambda file: bool(split_of(file.stem)))
    )
    for prompt, group in itertools.groupby(rows, key=lambda raw: (raw.get("prompt"), raw.get("split"))):
        responses = list(group)
        first = responses[0]
        if lacking := {"prompt", "response", attribute} - set(first):
            raise DataError(
                f"{first['where']}: the column {min(lacking)!r} is missing, which every row of HelpSteer has. Give its files "
                "train.jsonl.gz and validation.jsonl.gz; the preferences beside them are read as a file, "
                "data: {source: preference.jsonl.gz}."
            )
        others = {"prompt", "where", "split"}
        completions = [
            {**{key: value for key, value in raw.items() if key not in others}, "score": raw.get(attribute)}
            for raw in responses
        ]
        yield {"instruction": prompt[0], "completions": completions, "where": first["where"], "split": prompt[1]}


@register_source("sentiment", gold="sentiment")
def sentiment(path: Path | None) -> Iterator[Raw]:
    """Read the embedded task: continuations of openings, labelled by sentiment; no download, no chat template."""
    if path is None and not SENTIMENT.exists():
        raise DataError(f"The embedded pairs are missing at {SENTIMENT}. Install plo again.")
    yield from read_path(path or SENTIMENT)


@register_source("pocket", gold="pocket", seeded=True)
def pocket(path: Path | None, *, seed: NonNegativeInt = 0, pairs: PositiveInt = 2000) -> Iterator[Raw]:
    """Draw the pairs of the pocket task, whose reward is known for every token; a comparison draws other pairs for each seed.

    Args:
        seed: seed of the training pairs.
        pairs: number of training pairs, from 980 prompts in turn. Those of the 172 held-out prompts are the same for all
            seeds.
    """
    if path is not None:
        raise DataError("The data source 'pocket' takes no path: its pairs are drawn. Leave data.path out.")
    yield from pocket_pairs(seed, pairs)


def _load(hub_name: str, splits: tuple[str, ...] | None, **arguments: Any) -> Iterator[Raw]:
    """Read the named splits of a hub data set, or those whose names contain train or eval, or else all."""
    extras.require("train", f"The hub data set {hub_name!r}")
    import datasets

    try:
        loaded = datasets.load_dataset(hub_name, **{k: v for k, v in arguments.items() if v is not None})
    except Exception as error:  # a dozen kinds, from no network to a misspelt name
        raise DataError(
            f"The hub data set {hub_name!r} could not be loaded: {type(error).__name__}: {str(error)[:300]} "
            "Check name and options; without a network (or with HF_HUB_OFFLINE=1) give a local copy as "
            f"{'data.source' if splits is None else 'data.path'}."
        ) from error
    if not isinstance(loaded, dict):  # `split` names one, whose name no longer matters
        yield from _rows(loaded, f"{hub_name}[{arguments.get('split')}]", None)
        return
    if splits is not None and (missing := [name for name in splits if name not in loaded]):
        raise DataError(f"The hub data set {hub_name!r} has no split {missing[0]!r}; it has: {', '.join(loaded)}.")
    known = splits or [name for name in loaded if split_of(name)] or list(loaded)
    for name in known:
        yield from _rows(loaded[name], f"{hub_name}[{name}]", split_of(name))


def _saved_to_disk(path: Path) -> Iterator[Raw]:
    extras.require("train", f"{path}, which save_to_disk wrote,")
    import datasets

    loaded = datasets.load_from_disk(path)
    for name, rows in loaded.items() if isinstance(loaded, dict) else [("", loaded)]:
        yield from _rows(rows, f"{path}[{name}]" if name else str(path), split_of(str(name)))


def _rows(rows: Any, name: str, split: str | None) -> Iterator[Raw]:
    for number, raw in enumerate(rows):
        yield {**raw, "where": f"{name}[{number}]", "split": split}
