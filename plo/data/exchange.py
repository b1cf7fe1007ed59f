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


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write records to a .jsonl or .parquet file, completely or not at all, and return their number.

    Columns that some records lack are null there in Parquet, and absent in JSON lines.

    Raises:
        DataError: the file has another suffix, or there are no records.
    """
    records = list(records)
    if path.suffix not in (".jsonl", ".parquet"):
        raise DataError(f"{path}: the format {path.suffix!r} is not written. Name a .jsonl or a .parquet file.")
    if not records:
        raise DataError(f"{path}: there are no rows to write.")
    if path.suffix == ".jsonl":
        store.write_text(path, "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records))
        return len(records)
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), sink)
    store.write_bytes(path, sink.getvalue().to_pybytes())
    return len(records)
