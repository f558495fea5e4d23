"""Records as streams that are larger than memory: read from shards, mixed, reshuffled for every walk, and counted.

A source of records is shards of Parquet or JSON lines, or what `datasets` reads; a record's own `source` names the
dataset it is from. A record is `{"audio": path or None, "prompt", "answer", "source"}`. Audio is not decoded here.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from pyarrow import ArrowInvalid, Schema, compute, parquet, types
from tqdm.auto import tqdm

from chat_sam import HEADINGS
from processing_sam import AUDIO_TOKEN
from sam_lab.data.plain_tables import SPLITS
from sam_lab.data.records import MARKER_FILE, SUMMARY_FILE
from sam_lab.data.texts import text_problem

COLUMNS = ("audio", "prompt", "answer")
NEEDED = frozenset(COLUMNS)
FORMATS = (".parquet", ".jsonl")
SPLIT = re.compile(rf"({'|'.join(SPLITS)})[-._]")  # prefix of a shard's name
READ_ROWS = 1000  # records read at a time
MAX_STREAMS = 16  # shards of a folder that are read side by side
# Numbers of records of files, by time of change and size, and the special tokens they were checked for.
_COUNTED: dict[Any, tuple[int, set[str]]] = {}

# -- Records ------------------------------------------------------------------------------------------------------


class RecordSource:
    """Records that can be walked repeatedly, each time in another order.

    Args:
        source: A folder of `*.parquet` or `*.jsonl` shards, one such file, a `datasets.Dataset` or a
            `datasets.IterableDataset`, with the columns `audio`, `prompt`, `answer` and optionally `source`; others
            are ignored.
        shuffle_buffer (`int`): Records that are held to be shuffled. A `Dataset` is shuffled as a whole; up to 16
            shards of a folder are read side by side, and share the buffer.
        special_tokens (list of `str`, *optional*): Tokens that no text may contain, besides `<|audio|>`, which only a
            prompt may, where its clip is.
        dataset (`str`, *optional*): The `source` of records without one.

    Raises:
        FileNotFoundError: A file or folder that does not exist, or a folder without shards.
        ValueError: No records, missing columns, an incomplete folder or one of several formats or splits, a shard that
            cannot be read, or a number of records other than in the summary. Also in a walk: a record that cannot be
            learned, or a number of records other than counted.
        TypeError: `source` is something else.
    """

    def __init__(
        self,
        source: Any,
        shuffle_buffer: int,
        special_tokens: Sequence[str] = (),
        dataset: str | None = None,
    ):
        self.shuffle_buffer, self.dataset = shuffle_buffer, dataset
        self.special_tokens = tuple(dict.fromkeys((AUDIO_TOKEN, *special_tokens)))
        self.name = repr(str(source)) if isinstance(source, (str, Path)) else f"the {type(source).__name__}"
        if isinstance(source, (str, Path)):
            self.streams: list[Any]
            self.streams, counts = find_shards(Path(source))
        elif isinstance(source, (datasets.Dataset, datasets.IterableDataset)):
            for name, feature in (source.features or {}).items():
                if isinstance(feature, datasets.Audio):  # load_audio decodes it after sharding
                    source = source.cast_column(name, datasets.Audio(decode=False))
            if not isinstance(source, datasets.Dataset) or source.format["type"] != "custom":
                source = source.with_format(None)  # plain rows, not tables; a transform stays
            counts = [len(source)] if isinstance(source, datasets.Dataset) else []
            self.streams = [source]  # whole: a shard of `source.take(n)`, for one, holds other records
        else:
            raise TypeError(
                f"source: got {type(source).__name__}, expected a folder of records, a datasets.Dataset or "
                "IterableDataset, or a list of (source, weight)."
            )
        self.read_rows = READ_ROWS
        try:
            self.counts = counts or self._count()
        except ArrowInvalid:  # some streams of datasets 4 cannot join rows with and rows without audio
            self.read_rows = 1
            self.counts = self._count()
        self.num_rows = sum(self.counts)
        if not self.num_rows:
            raise ValueError(f"source: {self.name} has no records, expected at least one.")
        self.first(1)
        if counts:  # of what was walked to be counted, each record is checked already
            self._check_all_texts()

    def records(self) -> Iterator[dict[str, Any]]:
        """All records in the order in which they are stored."""
        return chain.from_iterable(map(self._records, self.streams))

    def first(self, number: int) -> list[dict[str, Any]]:
        """The first records, as they are stored."""
        return list(islice(self.records(), number))

    def pick(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """The records at these places of [`~RecordSource.records`], in that order. Of Parquet only their row
        groups are read, which matters where they contain audio."""
        wanted, begin, picked = sorted(set(places)), 0, []
        for stream, count in zip(self.streams, self.counts):
            own = [place - begin for place in wanted if begin <= place < begin + count]
            begin += count
            if own and isinstance(stream, Path) and stream.suffix == ".parquet":
                picked += self._picked(stream, own)
            elif own:
                chosen = set(own)
                records = islice(self._records(stream), own[-1] + 1)
                picked += [record for place, record in enumerate(records) if place in chosen]
        return picked

    def _picked(self, file: Path, places: list[int]) -> list[dict[str, Any]]:
        rows, begin = [], 0
        with parquet.ParquetFile(file, pre_buffer=False) as table:
            for group in range(table.num_row_groups):
                count = table.metadata.row_group(group).num_rows
                own = [place - begin for place in places if begin <= place < begin + count]
                begin += count
                if own:
                    rows += table.read_row_group(group, use_threads=False).take(own).to_pylist()
        return list(self._checked((repr(str(file)), row) for row in rows))

    def walk(self, seed: list[int]) -> Iterator[dict[str, Any]]:
        """Every record once, in the order of the seed."""
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self.streams))
        width = min(MAX_STREAMS, len(order))
        groups = [order[index::width] for index in range(width)]
        seeds = rng.integers(1 << 31, size=len(order))

        def group(members):
            for index in members:
                stream = self.streams[index]
                if isinstance(stream, datasets.Dataset):
                    yield from self._records(stream.shuffle(seed=int(seeds[index]), keep_in_memory=True))
                else:
                    size = max(self.shuffle_buffer // width, 1)
                    yield from _shuffled(self._counted(index), size, np.random.default_rng(seeds[index]))

        counts = [sum(self.counts[index] for index in members) for members in groups]
        yield from mix([group(members) for members in groups], counts, rng, self.name)

    def take(self, start: int, count: int, seed: list[int]) -> Iterator[dict[str, Any]]:
        """`count` records from the place `start` on of an endless sequence of walks, the n-th one seeded by n."""
        walk, skipped = divmod(start, self.num_rows)
        while count > 0:
            part = min(count, self.num_rows - skipped)
            yield from islice(self.walk([*seed, walk]), skipped, skipped + part)
            count, skipped, walk = count - part, 0, walk + 1

    def _records(self, stream) -> Iterator[dict[str, Any]]:
        return self._checked(self._rows(stream))

    def _checked(self, rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
        for where, record in rows:
            self._check(record, where)
            if self.dataset is not None and not record.get("source"):
                record["source"] = self.dataset
            yield record

    def _rows(self, stream) -> Iterator[tuple[str, dict[str, Any]]]:
        if not isinstance(stream, Path):
            # By `iter`: plain iteration would split the shards among the workers of a DataLoader.
            for batch in stream.iter(batch_size=self.read_rows):
                names = list(batch)
                yield from ((self.name, dict(zip(names, row))) for row in zip(*batch.values()))
        elif stream.suffix == ".jsonl":
            # Not by datasets, which infers each column's type from a file's first rows.
            with open(stream, "rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        where = f"{str(stream)!r}, line {number}"
                        yield where, _parse(line, where)
        else:
            # Not by datasets: its reader of Parquet has threads, which may crash forked workers of a DataLoader, and
            # for which it sleeps five seconds wherever a stream is closed before its end.
            where, number = repr(str(stream)), 0
            with parquet.ParquetFile(stream, pre_buffer=False) as table:
                for rows in table.iter_batches(READ_ROWS, use_threads=False):
                    names = rows.schema.names
                    for row in zip(*(column.to_pylist() for column in rows.columns)):
                        number += 1
                        yield f"{where}, row {number}", dict(zip(names, row))

    def _check(self, record: dict[str, Any], where: str) -> None:
        if not record.keys() >= NEEDED:
            _check_columns(list(record), where)
        audio, prompt, answer, source = record["audio"], record["prompt"], record["answer"], record.get("source")
        if not isinstance(prompt, str) or not isinstance(answer, str):
            raise ValueError(
                f"source: {where} has the prompt {prompt!r:.80} and the answer {answer!r:.80}, expected text; "
                "complete or remove the record."
            )
        if audio is not None and not isinstance(audio, (str, os.PathLike, bytes, dict)):
            problem = f"{type(audio).__name__} as audio, expected a path, an undecoded row of an Audio column or None."
        elif source is not None and not isinstance(source, str):
            problem = f"the source {source!r:.80}, expected text or None."
        else:
            problem = text_problem(prompt, answer, audio is not None, self.special_tokens)
            if problem is None:
                return
        raise ValueError(
            f"source: {where}, in the record with the prompt {prompt[:80]!r} and the answer {answer[:80]!r}, has "
            f"{problem}"
        )

    def _counted(self, index: int) -> Iterator[dict[str, Any]]:
        """The records of a stream that can change. What it gains would otherwise be skipped silently."""
        number, expected = 0, self.counts[index]
        for number, record in enumerate(self._records(self.streams[index]), 1):
            if number > expected:
                break
            yield record
        if number != expected:
            raise ValueError(
                f"source: {self.name} had {'more' if number > expected else 'fewer'} records than the {expected} that "
                "were counted; it must not change while it is read."
            )

    def _check_all_texts(self) -> None:
        """Finds special tokens and headings before a training does, by the columns of text alone; where they have any,
        all records of a stream are walked, which raises for the first that cannot be learned."""
        for stream, count in zip(self.streams, self.counts):
            key, tokens = None, set(self.special_tokens)
            if isinstance(stream, Path):
                key = _state(stream)
            elif stream.format["type"] == "custom":  # its transform may change the texts at every walk
                continue
            if tokens <= _COUNTED.get(key, (0, set()))[1]:
                continue
            if _have_any(stream, (*self.special_tokens, HEADINGS[1])):
                for number, (where, record) in enumerate(self._rows(stream), 1):
                    self._check(record, where if key is not None else f"{where}, row {number}")
            if key is not None:
                _COUNTED[key] = count, tokens

    def _count(self) -> list[int]:
        counts = [0] * len(self.streams)
        with tqdm(desc=f"counting {self.name}", unit=" records") as progress:
            for index, stream in enumerate(self.streams):
                key, tokens = None, set(self.special_tokens)
                if isinstance(stream, Path):
                    key = _state(stream)
                counts[index], checked = _COUNTED.get(key, (0, set()))
                if tokens <= checked:
                    continue
                counts[index] = 0
                for _ in self._records(stream):
                    counts[index] += 1
                    progress.update()
                if key is not None:
                    _COUNTED[key] = counts[index], tokens
        return counts


def _state(file: Path) -> tuple[Path, int, int]:
    state = file.stat()
    return file.resolve(), state.st_mtime_ns, state.st_size


def _have_any(stream: Any, marks: Sequence[str]) -> bool:
    """Whether any prompt or answer of a Parquet file or a table has one of the marks, or is no text."""
    pattern, names = "|".join(map(re.escape, marks)), ["prompt", "answer"]
    if isinstance(stream, Path):
        with parquet.ParquetFile(stream, pre_buffer=False) as table:
            return _match(table.iter_batches(10_000, columns=names, use_threads=False), pattern)
    return _match(stream.select_columns(names).with_format("arrow").iter(10_000), pattern)


def _match(tables: Iterable[Any], pattern: str) -> bool:
    for table in tables:
        for column in table.columns:
            kind = column.type.value_type if types.is_dictionary(column.type) else column.type
            if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
                return True
            if compute.any(compute.match_substring_regex(column.cast("large_string"), pattern)).as_py():
                return True
    return False


def mix(streams: list[Iterator], counts: list[int], rng: np.random.Generator, name: str = "") -> Iterator:
    """Mixes several streams into one: at every place, each of the remaining items is equally likely.

    `datasets.interleave_datasets` reads 12,000 records a second, and in `datasets` 4.0 not each exactly once.

    Raises:
        ValueError: A stream has fewer items than its count, which is how many are taken; the message has the `name`.
    """
    left = np.array(counts, dtype=np.int64)
    while total := int(left.sum()):
        block = rng.multivariate_hypergeometric(left, min(total, READ_ROWS), method="marginals")
        left -= block
        for index in rng.permutation(np.repeat(np.arange(len(streams)), block)).tolist():
            try:
                yield next(streams[index])
            except StopIteration:
                raise ValueError(
                    f"source: {name or 'a stream'} had fewer records than the {sum(counts)} that were counted; it "
                    "must not change while it is read."
                ) from None


def shares(weights: list[float], total: int) -> list[int]:
    """`total` split in proportion to the weights, by largest remainder."""
    exact = np.array(weights, dtype=np.float64) / sum(weights) * total
    result = np.floor(exact).astype(np.int64)
    for index in np.argsort(-(exact - result), kind="stable")[: total - int(result.sum())]:
        result[index] += 1
    return result.tolist()


def _shuffled(items: Iterator, size: int, rng: np.random.Generator) -> Iterator:
    """The items through a buffer, from which each new item replaces a random one."""
    buffer = list(islice(items, size))
    while block := list(islice(items, READ_ROWS)):
        for item, place in zip(block, rng.integers(len(buffer), size=len(block)).tolist()):
            yield buffer[place]
            buffer[place] = item
    yield from (buffer[place] for place in rng.permutation(len(buffer)))


def find_shards(path: Path) -> tuple[list[Path], list[int]]:
    """The files of a folder of records, and how many records each has: none for JSON lines, which must be counted."""
    if not path.exists():
        raise FileNotFoundError(f"source: there is no file or folder {str(path)!r}.")
    if path.is_file() and path.suffix not in FORMATS:
        raise ValueError(
            f"source: got the file {str(path)!r}, expected one that ends in {' or '.join(FORMATS)}; read "
            "other tables with read_table."
        )
    files = [path] if path.is_file() else _folder_files(path)
    if files[0].suffix != ".parquet":
        return files, []
    counts = []
    for file in files:
        try:
            metadata = parquet.read_metadata(file)
        except ArrowInvalid as error:
            raise ValueError(f"source: {str(file)!r} cannot be read as Parquet ({error}); write it again.") from error
        counts.append(metadata.num_rows)
        if metadata.num_rows:
            _check_schema(metadata.schema.to_arrow_schema(), repr(str(file)))
    summary = path / SUMMARY_FILE
    if path.is_dir() and summary.is_file():
        try:
            expected = json.loads(summary.read_text(encoding="utf-8"))["rows"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"source: {str(summary)!r} does not state the number of 'rows', as the summary of a folder of records "
                "does; write the folder again, or move the file elsewhere if it is another summary."
            ) from error
        if expected != sum(counts):
            raise ValueError(
                f"source: the shards in {str(path)!r} have {sum(counts)} records, its summary.json states {expected}; "
                "write the folder again."
            )
    return files, counts


def _folder_files(path: Path) -> list[Path]:
    started = (path / MARKER_FILE).exists() or any(path.glob("*.unfinished"))
    if started and not (path / SUMMARY_FILE).is_file():  # write_records writes it last
        raise ValueError(
            f"source: the folder {str(path)!r} has no summary.json, since its writing was interrupted; write it again."
        )
    found = {suffix: files for suffix in FORMATS if (files := sorted(path.glob(f"*{suffix}")))}
    if not found:
        raise FileNotFoundError(
            f"source: the folder {str(path)!r} has no *.parquet and no *.jsonl, expected shards of records."
        )
    if len(found) > 1:
        raise ValueError(
            f"source: the folder {str(path)!r} has *.parquet and *.jsonl, expected one of them; pass a subfolder, or "
            "a list of (file, weight)."
        )
    (files,) = found.values()
    splits = sorted({match.group(1) for file in files if (match := SPLIT.match(file.name))})
    if len(splits) > 1:
        raise ValueError(
            f"source: the folder {str(path)!r} has the splits {', '.join(splits)}, expected one; pass a subfolder, or "
            "a list of (file, weight)."
        )
    return files


def _check_columns(names: Sequence[str], where: str) -> None:
    if missing := [name for name in COLUMNS if name not in names]:
        raise ValueError(f"source: {where} has the columns {', '.join(names)}, expected also {', '.join(missing)}.")


def _check_schema(schema: Schema, where: str) -> None:
    """Raises before training what a Parquet shard's records would raise during it, judging by the columns' types."""
    _check_columns(schema.names, where)
    for name in (*COLUMNS, *(["source"] if "source" in schema.names else [])):
        kind = schema.field(name).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        fits = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
        fits |= name in ("audio", "source") and types.is_null(kind)
        fits |= name == "audio" and (types.is_struct(kind) or types.is_binary(kind) or types.is_large_binary(kind))
        if not fits:
            raise ValueError(f"source: {where} has {name} as {kind}, expected strings; write it again.")


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"source: {where} cannot be read as JSON ({error}); write it again.") from error
    if not isinstance(record, dict):
        raise ValueError(f"source: {where} is {line[:80]!r}, expected an object with {', '.join(COLUMNS)}.")
    return record
