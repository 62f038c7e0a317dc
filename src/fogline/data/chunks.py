"""Tables larger than memory as chunks that are read one at a time: row groups of Parquet, stretches of lines of CSV."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fogline.data.frames import FILES, NULLS, Table, delimiter_of, make_table
from fogline.data.images import SUFFIXES as IMAGES
from fogline.errors import did_you_mean, misfit, needed, some

IN_MEMORY_BYTES = 1 << 30
"""A single file up to this size is read into memory as a whole; a larger one, and any folder, chunk by chunk."""
_CSV_BYTES = 8 << 20  # of a chunk of lines
_LONGEST_CSV_BYTES = 64 << 20  # a chunk that finds no end by then has a quote that is never closed
_INFERRED = 8  # chunks of a CSV file from which the types of its columns are inferred
_LOOKED_AT = 1_000_000  # cells of footers whose counts of missing values are read
_OPEN_FILES = 1  # Parquet files a thread keeps open: reading a footer again takes as long as a small row group


@dataclass(frozen=True)
class Chunk:
    """A part of a file that is read as one.

    Attributes:
        file: which of the files.
        rows: how many it holds.
        before: rows of the file that lie before it.
        start: the row group, or the byte at which the lines begin.
        stop: the byte at which the lines end; of CSV.
    """

    file: int
    rows: int
    before: int
    start: int
    stop: int = 0


@dataclass(frozen=True)
class Chunks:
    """A file or a folder of files of one table, in chunks.

    Attributes:
        root: the file or folder.
        files: the files, in the order of their paths.
        chunks: of all files.
        columns: names, the same in every file.
        target: the column to predict.
        types: of the columns of CSV, inferred once from chunks all over the data.
        delimiter: of CSV; empty for Parquet.
    """

    root: Path
    files: tuple[Path, ...]
    chunks: tuple[Chunk, ...]
    columns: tuple[str, ...]
    target: str | None = None
    types: dict[str, Any] = field(default_factory=dict)
    delimiter: str = ""

    @property
    def rows(self) -> int:
        return sum(chunk.rows for chunk in self.chunks)

    @property
    def unit(self) -> str:
        """What a chunk is called."""
        return "stretches of lines" if self.delimiter else "row groups"

    def spread(self, count: int) -> list[int]:
        """At most so many chunks, evenly spaced over all."""
        size = min(count, len(self.chunks))
        return [k * len(self.chunks) // size for k in range(size)]

    def below(self, folder: str) -> Chunks:
        """The files below one folder only."""
        kept = [number for number, file in enumerate(self.files) if file.is_relative_to(self.root / folder)]
        places = {number: place for place, number in enumerate(kept)}
        chunks = tuple(replace(item, file=places[item.file]) for item in self.chunks if item.file in places)
        return replace(self, root=self.root / folder, files=tuple(self.files[n] for n in kept), chunks=chunks)

    def read(self, index: int, columns: Sequence[str] | None = None) -> Table:
        """One chunk as a table; its rows are numbered as in its file.

        Raises:
            ValueError: for a file that has changed or holds cells of another type, with its name.
        """
        chunk = self.chunks[index]
        path = self.files[chunk.file]
        names = list(self.columns if columns is None else columns)
        unknown = [name for name in names if name not in self.columns]
        if unknown:
            what = "target column" if unknown[0] == self.target else "column"
            raise ValueError(f"{self.root} has no {what} {unknown[0]!r}: {did_you_mean(unknown[0], self.columns)}")
        try:
            found = self._lines(path, chunk, names) if self.delimiter else _row_group(path, chunk.start, names)
        except (_arrow().ArrowException, OSError) as error:
            raise ValueError(
                f"expected a table like the rest of {self.root} in {path}, but rows {chunk.before + 1} to "
                f"{chunk.before + chunk.rows} could not be read: {error}"
            ) from error
        cells = {name: _array(found.column(name)) for name in names}
        return replace(make_table(cells, path.name, self.target, 1 + chunk.before), first=1)

    def _lines(self, path: Path, chunk: Chunk, names: list[str]) -> Any:
        with path.open("rb") as file:
            file.seek(chunk.start)
            text = file.read(chunk.stop - chunk.start)
        return _parsed(text, self.columns, self.delimiter, self.types, names)


def is_streamed(path: Path) -> bool:
    """Whether a path stands for tables that are read chunk by chunk: a folder of them, or a file too large."""
    if path.is_dir():
        return bool(_table_files(path))
    return path.suffix.lower() in FILES and path.stat().st_size > IN_MEMORY_BYTES


def open_chunks(path: Path, what: str, target: str | None = None) -> Chunks:
    """Find the chunks of a file or folder: from the footers of Parquet, in one pass over CSV.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: for files of different kinds or columns, without rows, or that cannot be read.
    """
    files = _table_files(path) if path.is_dir() else [path]
    kinds = {_is_csv(file) for file in files}
    if len(kinds) > 1:
        raise misfit(f"files of one kind in {path}", "both CSV and Parquet", "give a folder for each", what)
    found = _open_csv(path, files, what) if kinds == {True} else _open_parquet(path, files, what)
    if not found.rows:
        raise ValueError(f"{what}: expected at least one row in {path}, received none")
    return replace(found, target=target)


def _table_files(folder: Path) -> list[Path]:
    """Every table file below a folder; none where there are images, whose folder is one of classes."""
    files: list[Path] = []
    for item in folder.rglob("*"):
        if any(part[0] in "._" for part in item.relative_to(folder).parts):
            continue  # what other programs leave beside their tables
        if item.suffix.lower() in IMAGES:
            return []
        if item.suffix.lower() in FILES and item.is_file():
            files.append(item)
    return sorted(files)


def _is_csv(file: Path) -> bool:
    return file.suffix.lower() in (".csv", ".tsv")


def _open_parquet(root: Path, files: list[Path], what: str) -> Chunks:
    parquet = _arrow("pyarrow.parquet")
    chunks: list[Chunk] = []
    columns: tuple[str, ...] = ()
    for number, path in enumerate(files):
        try:
            footer = parquet.read_metadata(path)
        except (_arrow().ArrowException, OSError) as error:
            raise ValueError(f"{what}: expected a Parquet file in {path}, but it could not be read: {error}") from error
        names = tuple(footer.schema.to_arrow_schema().names)
        columns = columns or names
        _same_columns(columns, names, files[0], path, what)
        before = 0
        for group in range(footer.num_row_groups):
            rows = footer.row_group(group).num_rows
            if len(chunks) * len(columns) < _LOOKED_AT:
                _refuse_nulls(footer.row_group(group), path, before, what)
            if rows:
                chunks.append(Chunk(number, rows, before, group))
            before += rows
    return Chunks(root, tuple(files), tuple(chunks), columns)


def _refuse_nulls(group: Any, path: Path, before: int, what: str) -> None:
    """Missing values that the footer counts are found before any training."""
    for column in (group.column(place) for place in range(group.num_columns)):
        statistics = column.statistics
        if statistics is not None and statistics.has_null_count and statistics.null_count:
            where = f"column {column.path_in_schema!r}, rows {before + 1} to {before + group.num_rows}"
            received = f"{statistics.null_count} missing ones in {where}"
            remedy = "fill them (with the column's median, or a category of their own), or drop those rows"
            raise misfit(f"a value in every cell of {path.name}", received, remedy, what)


def _open_csv(root: Path, files: list[Path], what: str) -> Chunks:
    delimiter = delimiter_of(files[0])
    chunks: list[Chunk] = []
    columns: tuple[str, ...] = ()
    for number, path in enumerate(files):
        with path.open("rb") as file:
            header = file.readline().decode("utf-8-sig").splitlines()
            names = tuple(next(csv.reader(header, delimiter=delimiter), ()))
            if not names:
                raise misfit(f"a header with the names of the columns in {path}", "an empty file", "add it", what)
            columns = columns or names
            _same_columns(columns, names, files[0], path, what)
            before = 0
            for start, text in _stretches(file, path, what):
                rows = _count(text, columns, delimiter, path, what)
                if rows:
                    chunks.append(Chunk(number, rows, before, start, start + len(text)))
                before += rows
    found = Chunks(root, tuple(files), tuple(chunks), columns, delimiter=delimiter)
    return replace(found, types=_inferred(found))


def _same_columns(expected: tuple[str, ...], names: tuple[str, ...], first: Path, path: Path, what: str) -> None:
    if set(names) == set(expected) and len(names) == len(expected):
        return
    odd = sorted(set(names) ^ set(expected)) or list(names)
    remedy = "give all files the same columns"
    raise misfit(f"in {path} the columns of {first}", f"a difference in {some(odd)}", remedy, what)


def _stretches(file: io.BufferedReader, path: Path, what: str) -> Iterator[tuple[int, bytes]]:
    """Whole lines of about a chunk's size with the byte they begin at; a line end between quotes is none."""
    start = file.tell()
    while text := file.read(_CSV_BYTES):
        parts, odd, size = [text], text.count(b'"') % 2, len(text)
        while line := file.readline():
            parts.append(line)
            odd, size = (odd + line.count(b'"')) % 2, size + len(line)
            if not odd or size > _LONGEST_CSV_BYTES:
                break
        if odd:
            received = f"a quotation mark that is not closed, at byte {start} or after"
            raise misfit(f"pairs of quotation marks in {path}", received, "correct that line", what)
        text = b"".join(parts)
        yield start, text
        start += len(text)


def _count(text: bytes, columns: tuple[str, ...], delimiter: str, path: Path, what: str) -> int:
    try:
        types = {columns[0]: _arrow().string()}
        return int(_parsed(text, columns, delimiter, types, [columns[0]]).num_rows)
    except _arrow().ArrowException as error:
        raise ValueError(f"{what}: expected a table in {path}, but it could not be read: {error}") from error


def _inferred(found: Chunks) -> dict[str, Any]:
    """The type of each column in chunks all over the data; whole numbers as floats, and text where they differ.

    Truth values are text too, as in a table in memory: they come back as they were written.
    """
    arrow = _arrow()
    seen: dict[str, set[Any]] = {name: set() for name in found.columns}
    for index in found.spread(_INFERRED):
        chunk = found.chunks[index]
        with found.files[chunk.file].open("rb") as file:
            file.seek(chunk.start)
            text = file.read(chunk.stop - chunk.start)
        for item in _parsed(text, found.columns, found.delimiter, {}, list(found.columns)).schema:
            kind = arrow.float64() if arrow.types.is_integer(item.type) else item.type
            kind = arrow.string() if arrow.types.is_boolean(kind) else kind
            seen[item.name] |= set() if arrow.types.is_null(kind) else {kind}
    return {name: kinds.pop() if len(kinds) == 1 else arrow.string() for name, kinds in seen.items()}


def _parsed(text: bytes, columns: Iterable[str], delimiter: str, types: dict[str, Any], wanted: list[str]) -> Any:
    module = _arrow("pyarrow.csv")
    return module.read_csv(
        io.BytesIO(text),
        module.ReadOptions(column_names=list(columns), use_threads=False, block_size=len(text) + 1),
        module.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        module.ConvertOptions(null_values=NULLS, strings_can_be_null=True, column_types=types, include_columns=wanted),
    )


_open = threading.local()


def _row_group(path: Path, group: int, names: list[str]) -> Any:
    """A row group, by a file that this thread keeps open."""
    files: dict[Path, Any] = _open.__dict__.setdefault("files", {})
    if path not in files:
        while len(files) >= _OPEN_FILES:
            files.pop(next(iter(files))).close()
        files[path] = _arrow("pyarrow.parquet").ParquetFile(path)
    return files[path].read_row_group(group, columns=names, use_threads=False)


def _array(column: Any) -> np.ndarray[Any, Any]:
    """A column of Arrow as an array, with NaN, NaT or None where a value is missing."""
    column = column.combine_chunks() if column.num_chunks > 1 else column
    if _arrow().types.is_timestamp(column.type) and column.type.tz is not None:
        column = column.cast(_arrow().timestamp(column.type.unit))
    return np.asarray(column.to_numpy())


def _arrow(module: str = "pyarrow") -> Any:
    return needed(module, "stream", "pyarrow")
