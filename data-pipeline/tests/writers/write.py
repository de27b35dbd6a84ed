"""Writes the same rows with pyarrow, DuckDB and Polars in many forms: write.py DIR.

Row i holds its ids as a list in `token_ids`, or as a text of node numbers (id - 7) in `text`. Files whose names begin
with "fixed" hold rows of five ids.
"""

import sys
from itertools import product
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 1003
OUT = Path(sys.argv[1])


def numbers(row, fixed=False):
    length = 5 if fixed else 3000 if row == 500 else row * row % 13
    return [(row * 31 + index * 7) % 100 for index in range(length)]


IDS = [[number + 7 for number in numbers(row)] for row in range(ROWS)]
FIXED = [[number + 7 for number in numbers(row, fixed=True)] for row in range(ROWS)]
TEXTS = [" ".join(map(str, numbers(row))) for row in range(ROWS)]
WIDTHS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


def arrow(name, column, values, kind, **options):
    """One column, in small pages and row groups of an odd size."""
    nullable = options.pop("nullable", True)
    table = pa.table([pa.array(values, kind)], pa.schema([pa.field(column, kind, nullable)]))
    options = {"row_group_size": 333, "data_page_size": 2000, "write_batch_size": 64} | options
    pq.write_table(table, OUT / f"{name}.parquet", **options)


def pyarrow_files():
    text, ids = ("text", TEXTS, pa.string()), ("token_ids", IDS, pa.list_(pa.int32()))
    codecs = ["none", "snappy", "gzip", "brotli", "zstd", "lz4"]
    for codec, page, dictionary in product(codecs, ["1.0", "2.0"], [True, False]):
        for kind in text, ids:
            name = f"pyarrow-{kind[0]}-{codec}-v{page[0]}-{'dictionary' if dictionary else 'plain'}"
            arrow(name, *kind, compression=codec, data_page_version=page, use_dictionary=dictionary)
    for page in ["1.0", "2.0"]:
        for column, encodings in [
            (text, ["PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"]),
            (ids, ["PLAIN", "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"]),
        ]:
            path = {"text": "text", "token_ids": "token_ids.list.element"}[column[0]]
            for encoding in encodings:
                options = {"use_dictionary": False, "column_encoding": {path: encoding}, "data_page_version": page}
                arrow(f"pyarrow-{column[0]}-{encoding}-v{page[0]}", *column, **options)
                # Without nulls in the schema there are no definition levels of rows.
                required = column[2] if column is text else pa.list_(pa.field("element", pa.int32(), False))
                name = f"pyarrow-{column[0]}-{encoding}-v{page[0]}-required"
                arrow(name, *column[:2], required, nullable=False, **options)
    for name, kind in {
        "large": pa.large_string(),
        "view": pa.string_view(),
        "binary": pa.binary(),
        "dictionary": pa.dictionary(pa.int16(), pa.string()),
    }.items():
        arrow(f"pyarrow-text-type-{name}", "text", TEXTS, kind)
    for width in WIDTHS:
        element = getattr(pa, width)()
        arrow(f"pyarrow-list-{width}", "token_ids", IDS, pa.list_(element))
        arrow(f"pyarrow-large-list-{width}", "token_ids", IDS, pa.large_list(element))
        arrow(f"fixed-pyarrow-list-{width}", "token_ids", FIXED, pa.list_(element, 5))
    for column in text, ids:
        for name, options in {
            "checksums": {"write_page_checksum": True},
            "no-statistics": {"write_statistics": False},
            "page-index": {"write_page_index": True},
            "old-version": {"version": "1.0"},
            "item-names": {"use_compliant_nested_type": False},
            "no-arrow-schema": {"store_schema": False},
            "one-row-groups": {"row_group_size": 1},
            "one-group": {"row_group_size": 5000},
            "one-page": {"data_page_size": 1 << 20, "row_group_size": 1000},
            "small-dictionary": {"dictionary_pagesize_limit": 100},
        }.items():
            arrow(f"pyarrow-{column[0]}-{name}", *column, **options)


def duckdb_files():
    connection = duckdb.connect()
    connection.register("rows", pa.table({"text": TEXTS, "ids": pa.array(IDS, pa.list_(pa.int64())), "fixed": FIXED}))
    types = ["TINYINT", "UTINYINT", "SMALLINT", "USMALLINT", "INTEGER", "UINTEGER", "BIGINT", "UBIGINT"]
    columns = {"text": "text", "blob": "text::BLOB AS text"}
    columns |= {f"list-{kind}": f"ids::{kind}[] AS token_ids" for kind in types}
    columns |= {"fixed": "fixed::INTEGER[5] AS token_ids"}
    forms = list(product(columns, ["zstd"], ["V1", "V2"]))
    codecs = ["uncompressed", "snappy", "gzip", "zstd", "lz4_raw", "brotli"]
    forms += product(["text", "list-INTEGER"], codecs, ["V1", "V2"])
    for column, codec, version in forms:
        prefix = "fixed-" if column == "fixed" else ""
        target = OUT / f"{prefix}duckdb-{column}-{codec}-{version}.parquet"
        options = f"FORMAT parquet, COMPRESSION {codec}, PARQUET_VERSION {version}, ROW_GROUP_SIZE 300"
        connection.execute(f"COPY (SELECT {columns[column]} FROM rows) TO '{target}' ({options})")


def polars_files():
    dtypes = [pl.Int8, pl.UInt8, pl.Int16, pl.UInt16, pl.Int32, pl.UInt32, pl.Int64, pl.UInt64]
    frames = {"text": pl.DataFrame({"text": TEXTS})}
    frames["categorical"] = frames["text"].cast(pl.Categorical)
    frames["binary"] = frames["text"].cast(pl.Binary)
    for dtype in dtypes:
        frames[f"list-{dtype}"] = pl.DataFrame({"token_ids": pl.Series(IDS, dtype=pl.List(dtype))})
    frames["array"] = pl.DataFrame({"token_ids": pl.Series(FIXED, dtype=pl.Array(pl.Int32, 5))})
    forms = list(product(frames, ["zstd"], [True, False]))
    codecs = ["uncompressed", "snappy", "gzip", "brotli", "lz4"]
    forms += product(["text", "list-Int32"], codecs, [True])
    for frame, codec, statistics in forms:
        prefix = "fixed-" if frame == "array" else ""
        name = f"{prefix}polars-{frame}-{codec}-{'with' if statistics else 'without'}-statistics.parquet"
        options = {"row_group_size": 301, "data_page_size": 2000}
        frames[frame].write_parquet(OUT / name, compression=codec, statistics=statistics, **options)


pyarrow_files()
duckdb_files()
polars_files()
