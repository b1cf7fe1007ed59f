"""Rows from files (.jsonl, .json, .csv, .parquet; .gz of the first three) and from folders of them."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from plo.data.rows import DataError, split_of

Raw = dict[str, Any]  # a row as it came, with "where" added


def read_path(path: Path, keep: Callable[[Path], bool] = lambda path: True) -> Iterator[Raw]:
    """Raw rows of a file, or of all data files in a folder, in the order of their names.

    In a folder a file whose name says train, or eval, test or validation, fixes the split of its rows.

    Args:
        keep: which of a folder's files to read.

    Raises:
        DataError: nothing there, no rows, or a malformed line, which is named.
    """
    if not path.exists():
        raise DataError(f"There is nothing at {path}. Give an existing file or folder.")
    if path.is_file():
        yield from _read_file(path)
        return
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and _reader(p) and not _hidden(p.relative_to(path))]
    files = [file for file in files if keep(file)]
    if not files:
        raise DataError(f"The folder {path} holds no data file that is wanted: put {', '.join(READERS)} files there.")
    for file in files:
        split = split_of(file.name.split(".")[0])
        for raw in _read_file(file):
            yield {"split": split, **raw}


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _reader(path: Path) -> Callable[[Path], Iterator[Raw]] | None:
    return READERS.get(Path(path.name.lower().removesuffix(".gz")).suffix)


def _read_file(path: Path) -> Iterator[Raw]:
    reader = _reader(path)
    if reader is None:
        raise DataError(f"{path}: the format {path.suffix!r} is not read. Use one of {', '.join(READERS)}.")
    count = 0
    try:
        for raw in reader(path):
            yield raw
            count += 1
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read after row {count}: {error}. Copy the file again.") from error
    if not count:
        raise DataError(f"{path}: the file holds no rows. Remove it, or fill it.")


def _open(path: Path) -> io.BufferedIOBase:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


def _jsonl(path: Path) -> Iterator[Raw]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):  # bytes end at \n alone, not at U+2028
            where = f"{path}:{number}"
            text = _decode(line, where, first=number == 1)
            if text.strip():
                yield _object(_json(text, where), where)


def _json_file(path: Path) -> Iterator[Raw]:
    with _open(path) as file:
        text = _decode(file.read(), str(path))
    if not text.strip():
        return
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        if str(error).startswith("Extra data"):  # JSON lines under the name .json, as on the hub
            yield from _jsonl(path)
            return
        values = _json(text, str(path))
    if isinstance(values, dict):  # one row: JSON lines of one line, again
        values = [values]
    if not isinstance(values, list):
        raise DataError(
            f"{path}: the file holds one {type(values).__name__}, not a list of rows. Write [{{...}}, ...]."
        )
    for number, value in enumerate(values):
        where = f"{path}[{number}]"
        yield _object(value, where)


def _csv(path: Path) -> Iterator[Raw]:
    """All cells are text; beside prompt and responses, those that read as numbers become numbers."""
    csv.field_size_limit(2**31 - 1)  # the module's default of 128 kB is less than some texts
    with _open(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        count = reader.reader  # its line_num is right inside an error, unlike that of the DictReader
        names: list[str] = []
        try:
            names = list(reader.fieldnames or [])
            if len(set(names)) < len(names):
                raise DataError(f"{path}:1: a column name stands there twice: {', '.join(names)}. Rename one of them.")
            for raw in reader:
                where = f"{path}:{reader.line_num}"
                if None in raw or None in raw.values():
                    raise DataError(f"{where}: the row has not the {len(names)} cells of the header. Quote its commas.")
                yield {**{name: _cell(name, text) for name, text in raw.items()}, "where": where}
        except csv.Error as error:
            raise DataError(f"{path}:{count.line_num}: malformed CSV: {error}. Mend the line.") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: after line {count.line_num} the text is not UTF-8. Save it as UTF-8.") from error


def _cell(name: str, text: str) -> Any:
    if name in ("prompt", "chosen", "rejected", "chosen_prompt", "rejected_prompt", "split"):
        if text.startswith("[{"):
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                return text
            is_chat = all(isinstance(message, dict) and {"role", "content"} <= set(message) for message in value)
            return value if is_chat else text
        return text
    try:
        return float(text)
    except ValueError:
        return text


def _parquet(path: Path) -> Iterator[Raw]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for value in batch.to_pylist():
                    yield {**value, "where": f"{path}[{number}]"}
                    number += 1
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: malformed Parquet: {error}. Write the file again.") from error


def _decode(line: bytes, where: str, first: bool = True) -> str:
    try:
        return line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: the text is not UTF-8 ({error.reason}). Save the file as UTF-8.") from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        text = text[max(error.pos - 30, 0) : error.pos + 30]
        raise DataError(f"{where}: malformed JSON, {error.msg} at {place}: {text!r}. Mend it.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: unreadable JSON: {error}. Mend it.") from error


def _object(value: Any, where: str) -> Raw:
    if not isinstance(value, dict):
        raise DataError(
            f'{where}: a row is {type(value).__name__} {str(value)[:40]!r}. Write an object {{"prompt": ...}}.'
        )
    return {**value, "where": where}


READERS = {".jsonl": _jsonl, ".json": _json_file, ".csv": _csv, ".parquet": _parquet}
