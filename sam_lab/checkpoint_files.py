"""Sources of a conversion: files, directories and Hub repositories, and their tensors, read without executing code."""

import hashlib
import io
import json
import pickletools
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file

# -- Files --------------------------------------------------------------------------------------------------------

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TOKENIZER_FILES += ("vocab.json", "merges.txt")


@dataclass
class Source:
    """The origin of one part: the given source, the path that was read and the SHA-256 of each file by name."""

    part: str
    given: str
    path: Path
    repository: str | None = None  # on the Hub
    revision: str | None = None  # the commit
    files: dict[str, str] = field(default_factory=dict)

    def files_read(self) -> list[Path]:
        """The files that the part is read from."""
        if self.part == "tokenizer":
            if self.path.is_file():
                return [self.path]
            return [self.path / name for name in TOKENIZER_FILES if (self.path / name).is_file()]
        return weight_files(self.path) + [file for file in [config_file(self.path)] if file.is_file()]


def fetch(part: str, source: str | Path) -> Source:
    """Finds a file or directory, or downloads the needed files of a Hub repository, `owner/name[@revision]`."""
    path = Path(source).expanduser()
    if path.exists():
        return Source(part, str(source), path)
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", str(source))
    if match is None:
        raise FileNotFoundError(
            f"{part}: got {str(source)!r}, expected a file, a directory or a Hub id (owner/name or "
            "owner/name@revision)."
        )
    repository, revision = match.groups()
    wanted = [*TOKENIZER_FILES, "config.json"] if part == "tokenizer" else ["*.json", "*.safetensors"]
    folder = Path(snapshot_download(repository, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"]))
    if part != "tokenizer" and not any(folder.glob("*.safetensors")):
        wanted = [f"*{suffix}" for suffix in WEIGHT_SUFFIXES]
        snapshot_download(repository, revision=folder.name, allow_patterns=wanted, ignore_patterns=["*/*"])
    return Source(part, str(source), folder, repository, revision=folder.name)  # a snapshot is named by its commit


def weight_files(path: Path) -> list[Path]:
    """The files with the tensors of `path`, a file or a directory; safetensors are preferred."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or directory.")
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = path / f"{name}.index.json"
        if (path / name).is_file():
            return [path / name]
        if index.is_file():
            files = sorted({path / shard for shard in read_json_object(index)["weight_map"].values()})
            absent = [file.name for file in files if not file.is_file()]
            if absent:
                raise FileNotFoundError(f"{index}: lists missing shards: {', '.join(absent)}.")
            return files
    files = sorted(file for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    if len(files) == 1:
        return files
    found = ", ".join(file.name for file in files) or "none"
    raise FileNotFoundError(
        f"{path}: expected model.safetensors, pytorch_model.bin, the index of their shards, or a single file of "
        f"{' '.join(WEIGHT_SUFFIXES)}; found {found}. Pass the file itself."
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises `ValueError` with the path if it is not one."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a JSON object: {error}") from error


def config_file(path: Path) -> Path:
    """The path of `config.json` in a directory or beside a file, whether or not it exists."""
    return (path if path.is_dir() else path.parent) / "config.json"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- Tensors ------------------------------------------------------------------------------------------------------


class _Inert:
    """Stand-in for a class that a checkpoint names: accepts any arguments, stores nothing, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    __setstate__ = __init__


# Names, by their start, that fairseq files contain beside tensors: the configuration (a Namespace, or OmegaConf's
# containers with the types of their fields, which may be any class of fairseq or EAT) and NumPy's numbers.
INERT_NAMES = (
    *("EAT.", "argparse.Namespace", "fairseq.", "numpy.", "omegaconf.", "pathlib.", "typing.", "_operator.getitem"),
    *(f"builtins.{name}" for name in ("bool", "bytes", "dict", "float", "int", "list", "str", "tuple")),
)
# Names that torch's own list decides on.
TORCH_NAMES = ("_codecs.encode", "builtins.bytearray", "builtins.complex", "builtins.set", "collections.", "torch.")
# torch.save writes the names of Python 2.
PYTHON_2_NAMES = {"__builtin__.long": "builtins.int", "__builtin__.unicode": "builtins.str"}


def _named_classes(path: Path) -> set[str]:
    """Every class and function that the pickles of a checkpoint name, read without unpickling."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            records = [name for name in archive.namelist() if name.endswith("data.pkl")]
            streams: list[Any] = [io.BytesIO(archive.read(name)) for name in records]
    else:  # the format before torch 1.6: four pickles, of which the last is the content, then the tensors' data
        streams = [open(path, "rb")] * 4
    try:
        operations = [operation for stream in streams for operation in pickletools.genops(stream)]
    finally:
        for stream in streams:
            stream.close()
    named = {argument.replace(" ", ".") for operation, argument, _ in operations if operation.name == "GLOBAL"}
    return {PYTHON_2_NAMES.get(name, name.replace("__builtin__.", "builtins.")) for name in named}


def _load_pickle(path: Path) -> Any:
    """`torch.load(weights_only=True)`, with an inert stand-in for every class that fairseq files contain."""
    try:
        named = _named_classes(path)
        inert = {name for name in named if name.startswith(INERT_NAMES)}
        refused = {name for name in named - inert if not name.startswith(TORCH_NAMES)}
        if refused:
            raise ValueError(
                f"contains {', '.join(sorted(refused))} beside tensors, which no checkpoint of EAT or Mamba-2 needs "
                "and which may run code. Nothing of it was executed; use the publisher's file"
            )
        stand_ins: list[Any] = [(_Inert, name) for name in inert]
        stand_ins.append((lambda *factory: {}, "collections.defaultdict"))  # items can only be set on a dict
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file raises anything
        # only the cause from torch's message, which also advises loading the file unsafely
        found = re.search(r"WeightsUnpickler error: (.*)", str(error))
        reason = found[1] if found else (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a readable checkpoint: {reason.rstrip('.')}.") from error


def read_tensors(path: Path) -> dict[str, Any]:
    """All entries of the checkpoint at `path`, memory-mapped if the format allows it."""
    tensors: dict[str, Any] = {}
    for file in weight_files(path):
        if file.suffix == ".safetensors":
            try:
                content = load_file(file)
            except SafetensorError as error:
                raise ValueError(f"{file}: not a readable safetensors file: {error}") from error
        else:
            content = _load_pickle(file)
            if isinstance(content, dict) and isinstance(content.get("model"), dict):
                content = content["model"]  # fairseq files also contain the configuration and the training state
            if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
                raise ValueError(f"{file}: got a {type(content).__name__}, expected a dictionary of tensors by name.")
        tensors.update(content)
    return tensors
