"""Datasets with their audio as it is stored, by the package `datasets`, without torchcodec."""

from typing import Any

import datasets


def load_undecoded(
    name: str, split: str, streaming: bool = False, data_files: dict[str, str] | str | None = None
) -> tuple[datasets.Dataset | datasets.IterableDataset, list[str]]:
    """`datasets.load_dataset` without decoding, and without torchcodec.

    `datasets` imports torchcodec wherever it builds an Audio column itself, also one that is never decoded: from the
    shards of WebDataset, and from the audio files of a repository. Such columns are read as bytes, or as paths.

    Args:
        name (`str`): A format of `datasets`, a folder, or a dataset on the Hub.
        split (`str`): One of its splits.
        streaming (`bool`, *optional*, defaults to `False`): Read row by row, without preparing it on disk.
        data_files (`dict` or `str`, *optional*): Files of a format.

    Returns:
        The dataset, and its columns of audio, in order: undecoded Audio, bytes in a dataset that has `__key__`
        (WebDataset), else paths.
    """
    options: dict[str, Any] = {"split": split} | ({} if data_files is None else {"data_files": data_files})
    builder = datasets.load_dataset_builder(name, data_files=data_files)
    if isinstance(builder, datasets.GeneratorBasedBuilder):  # the others pass stored tables on
        features = datasets.load_dataset(name, streaming=True, **options).features
        columns = [column for column, kind in features.items() if isinstance(kind, datasets.Audio)]
        stored = datasets.Value("binary" if "__key__" in features else "string")
        features = datasets.Features({**features, **dict.fromkeys(columns, stored)})
        return datasets.load_dataset(name, streaming=streaming, features=features, **options), columns
    table = datasets.load_dataset(name, streaming=streaming, **options)
    return undecoded(table)


def undecoded(table: Any) -> tuple[Any, list[str]]:
    """A dataset with its Audio columns undecoded, and their names."""
    columns = [column for column, kind in (table.features or {}).items() if isinstance(kind, datasets.Audio)]
    for column in columns:
        table = table.cast_column(column, datasets.Audio(decode=False))
    return table, columns
