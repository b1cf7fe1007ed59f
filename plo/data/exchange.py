"""TRL's preference format: rows as `DPOTrainer` and `datasets.load_dataset` read them, in JSON lines or Parquet."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from plo import store
from plo.data.errors import DataError
from plo.data.rows import Row

OWN = ("prompt", "chosen", "rejected")


def to_trl(row: Row) -> dict[str, Any]:
    """Return a row in TRL's preference format with an explicit prompt: texts, or lists of messages, and numeric columns.

    Example:
        >>> to_trl(Row("2 + 2 =", " 4", " 5", {"margin": 1.0}))
        {'prompt': '2 + 2 =', 'chosen': ' 4', 'rejected': ' 5', 'margin': 1.0}
    """
    return {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected} | {
        name: value for name, value in row.columns.items() if name not in OWN
    }


def check_suffix(path: Path) -> None:
    """Raise a DataError unless the name of a file says that it is .jsonl or .parquet."""
    if path.suffix not in (".jsonl", ".parquet"):
        raise DataError(f"{path}: the format {path.suffix!r} is not written. Name a .jsonl or a .parquet file.")


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write records to a .jsonl or .parquet file, completely or not at all, and return their number.

    Columns that some records lack are null there in Parquet, and absent in JSON lines.

    Raises:
        DataError: the file has another suffix, or there are no records.
    """
    check_suffix(path)
    if not (records := list(records)):
        raise DataError(f"{path}: there are no rows to write.")
    if path.suffix == ".jsonl":
        store.write_text(path, "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records))
        return len(records)
    import pyarrow
    import pyarrow.parquet

    names = dict.fromkeys(name for record in records for name in record)  # pyarrow would take those of the first record
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({n: [record.get(n) for record in records] for n in names}), sink)
    store.write_bytes(path, sink.getvalue().to_pybytes())
    return len(records)
