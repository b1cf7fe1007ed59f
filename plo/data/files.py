"""Read rows from files (.jsonl, .json, .csv, .tsv, each also .gz, and .parquet) and from folders of them."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from plo.data.errors import DataError
from plo.data.rows import CellNumber, split_of
from plo.data.shapes import Raw

# Columns that are never numbers, even in CSV.
TEXTS = {"prompt", "chosen", "rejected", "chosen_prompt", "rejected_prompt", "split"}
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}  # separators of cells in a CSV file; the first wins a tie
# Keys under which a JSON file may hold its rows: {"data": [rows]}.
HOLDERS = {"data", "rows", "examples", "records", "items", "instances"}


def read_path(path: Path, keep: Callable[[Path], bool] = lambda path: True) -> Iterator[Raw]:
    """Read the raw rows of a file, or of all data files in a folder, in the order of their names.

    A file in a folder fixes the split of its rows where its name contains train, eval, test or validation.

    Args:
        keep: returns whether to read a file of a folder.

    Raises:
        DataError: there is no such file, or it has no rows, or a malformed line, which is named.
    """
    if not path.exists():
        raise DataError(f"There is nothing at {path}. Give an existing file or folder.")
    if path.is_file():
        yield from _read_file(path)
        return
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and _reader(p) and not _hidden(p.relative_to(path))]
    files = [file for file in files if keep(file)]
    if not files:
        raise DataError(f"The folder {path} has no data file to read: put {', '.join(READERS)} files there.")
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
        raise DataError(f"{path}: the file holds no rows. Fill it, or remove it from its folder.")


def _open(path: Path) -> Any:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


def _jsonl(path: Path, *, maybe_array: bool = True) -> Iterator[Raw]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):  # lines of bytes end at \n alone, lines of text at U+2028 too
            where = f"{path}:{number}"
            text = _decode(line, where, first=number == 1)
            if not text.strip():
                continue
            if maybe_array and text.lstrip().startswith("["):  # the whole file is one JSON array
                yield from _json_file(path)
                return
            maybe_array = False
            yield from _objects(_json(text, where), where)


def _json_file(path: Path) -> Iterator[Raw]:
    with _open(path) as file:
        text = _decode(file.read(), str(path))
    if not text.strip():
        return
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        if str(error).startswith("Extra data"):  # JSON lines in a file named .json, as on the hub
            yield from _jsonl(path, maybe_array=False)
            return
        values = _json(text, str(path))
    if isinstance(values, dict):
        yield from _objects(values, str(path))
        return
    if not isinstance(values, list):
        raise DataError(
            f"{path}: the file holds one {type(values).__name__}, not a list of rows. Write [{{...}}, ...]."
        )
    for number, value in enumerate(values):
        where = f"{path}[{number}]"
        yield _object(value, where)


def _objects(value: Any, where: str) -> Iterator[Raw]:
    """Yield the rows in an object such as {"data": [...]} or {"train": [...], "test": [...]}, or else the object itself."""
    lists = {}
    if isinstance(value, dict) and not TEXTS - {"split"} & set(value):
        named = {name: rows for name, rows in value.items() if name in HOLDERS or split_of(name)}
        lists = {n: rows for n, rows in named.items() if rows and isinstance(rows, list) and isinstance(rows[0], dict)}
    if not lists:
        yield _object(value, where)
    for name, rows in lists.items():
        for number, row in enumerate(rows):
            yield {"split": split_of(name), **_object(row, f"{where}[{name}][{number}]")}


def _csv(path: Path) -> Iterator[Raw]:
    """Read a CSV or TSV file. Cells that look like numbers become numbers that keep their text, except in `TEXTS`.

    The delimiter is the comma, semicolon or tab that splits the header into the most names.
    """
    csv.field_size_limit(2**31 - 1)  # some texts are longer than the default of 128 kB
    with _open(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True, delimiter=_delimiter(path))
        count = reader.reader  # its line_num is right in an error, unlike that of the DictReader
        names: list[str] = []
        try:
            names = list(reader.fieldnames or [])
            if len(set(names)) < len(names):
                raise DataError(
                    f"{path}:1: the header has a column name twice: {', '.join(names)}. Rename one of them."
                )
            for raw in reader:
                where = f"{path}:{reader.line_num}"
                if None in raw or None in raw.values():
                    raise DataError(
                        f"{where}: the row does not have the {len(names)} cells of the header. Quote cells that hold "
                        f"a {DELIMITERS[reader.reader.dialect.delimiter]}."
                    )
                yield {**{name: _cell(name, text) for name, text in raw.items()}, "where": where}
        except csv.Error as error:
            raise DataError(f"{path}:{count.line_num}: malformed CSV: {error}. Mend the line.") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: after line {count.line_num} the text is not UTF-8. Save it as UTF-8.") from error


def _delimiter(path: Path) -> str:
    with _open(path) as file:
        header = file.readline().decode("utf-8-sig", errors="replace")
    return max(DELIMITERS, key=lambda delimiter: len(next(csv.reader([header], delimiter=delimiter), [])))


def _cell(name: str, text: str) -> Any:
    if name in TEXTS:
        return text
    try:
        return CellNumber(text)
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


READERS = {".jsonl": _jsonl, ".json": _json_file, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
