"""Sources of a conversion: files, directories and Hub repositories; their tensors and the configuration that fairseq's
files carry, read without executing code."""

import hashlib
import io
import json
import pickletools
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
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
    """Stand-in for a class that a checkpoint names: stores what it is given as data, and does nothing."""

    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Inert":
        instance = super().__new__(cls)
        instance.arguments = args
        return instance

    def __setstate__(self, state: Any) -> None:
        self.state = state


# Names, by their start, that fairseq files contain beside tensors: the configuration (a Namespace, or OmegaConf's
# containers with the types of their fields, which may be any class of fairseq or EAT) and NumPy's numbers.
INERT_NAMES = (
    *("EAT.", "argparse.Namespace", "fairseq.", "numpy.", "omegaconf.", "pathlib.", "typing.", "_operator.getitem"),
    *(f"builtins.{name}" for name in ("bool", "bytes", "dict", "float", "int", "list", "str", "tuple")),
)
# EAT's enumerations and configurations are named by the folder that it was cloned into.
EAT_NAME = re.compile(r"[\w-]+\.(models|tasks|data)\.\w+\.(Modality|PredictionMode|\w+Config)")
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
        inert = {name for name in named if name.startswith(INERT_NAMES) or EAT_NAME.fullmatch(name)}
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


# -- fairseq's configuration --------------------------------------------------------------------------------------

CONFIGURATIONS = ("cfg", "args")  # OmegaConf's containers or a dict; in older files a Namespace
PRETRAINED = ("pretrained_model_args", "w2v_args")  # where a fine-tuned file has that of the model it started from
DEEPEST = 64  # levels of nested containers


def plain_data(value: Any, depth: int = 0) -> Any:
    """The configuration of a fairseq file as dicts, lists and values.

    A Namespace and OmegaConf's containers become dicts and lists, OmegaConf's nodes and enumerations their values, and
    NumPy's scalars numbers. An object of another class stays what it is.

    Args:
        value: From an unpickled checkpoint, with stand-ins for its classes.
        depth (`int`, *optional*, defaults to 0): Of this value in its containers.

    Raises:
        ValueError: Containers that are nested without end.
    """
    if depth > DEEPEST:
        raise ValueError(f"its configuration is nested more than {DEEPEST} levels deep")
    if isinstance(value, dict):
        return {key: plain_data(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(item, depth + 1) for item in value]
    if not isinstance(value, _Inert):
        return value
    state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
    if isinstance(state, dict):
        for name in ("_content", "_val"):  # OmegaConf's containers and nodes
            if name in state:
                return plain_data(state[name], depth + 1)
        return plain_data(state, depth + 1)
    number = _numpy_scalar(value.arguments)
    if number is not None:
        return number
    return plain_data(value.arguments[0], depth + 1) if len(value.arguments) == 1 else value  # an enumeration's member


def _numpy_scalar(arguments: tuple[Any, ...]) -> float | int | None:
    """The number that NumPy pickles as a call with its type and its bytes."""
    if len(arguments) != 2 or not isinstance(arguments[0], _Inert) or not isinstance(arguments[1], bytes):
        return None
    kind = arguments[0].arguments[:1]
    if not kind or not isinstance(kind[0], str) or not re.fullmatch("[fiu][248]|[iu]1", kind[0]):
        return None
    numbers = np.frombuffer(arguments[1], kind[0])
    return numbers[0].item() if len(numbers) == 1 else None


def model_fields(place: str, root: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields of the encoder in a fairseq configuration, by their place, such as `cfg.model.num_heads`.

    Args:
        place (`str`): The configuration's own place, such as `cfg`.
        root (`dict`): The configuration, from [`plain_data`]. A fine-tuned one has another one in it, that of the
            model which was trained further, and sets the length of the spectrogram anew.
    """
    yield from _fields(place, root, [root])
    task = root.get("task")
    if isinstance(task, dict) and task.get("target_length") not in UNSAID_VALUES:
        yield f"{place}.task.target_length", task["target_length"]


UNSAID_VALUES = (None, "???")  # the second is OmegaConf's mark of a missing value


def _fields(place: str, root: dict[str, Any], roots: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    model = root.get("model")
    if isinstance(model, dict):
        place = f"{place}.model"
    else:
        model = root  # a Namespace has the fields of the model among those of the task
    own = dict(_leaves(place, model, roots))
    has_length = any(name.endswith(".target_length") for name in own)
    for name in PRETRAINED:
        if isinstance(model.get(name), dict):
            for field, value in _fields(f"{place}.{name}", model[name], [model[name], *roots]):
                if not (has_length and field.endswith(".target_length")):
                    yield field, value
    yield from own.items()


def _leaves(place: str, fields: dict[str, Any], roots: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            if name in ("modalities", "image"):  # not the decoders, which only pre-training has
                yield from _leaves(f"{place}.{name}", value, roots)
            continue
        for _ in range(8):  # OmegaConf's references, such as `${model.num_heads}`, which may lead to others
            reference = re.fullmatch(r"\$\{([A-Za-z_][\w.]*)\}", value) if isinstance(value, str) else None
            if reference is None:
                break
            value = next((found for each in roots if (found := _at(each, reference[1])) is not None), None)
        if value not in UNSAID_VALUES:
            yield f"{place}.{name}", value


def _at(fields: Any, name: str) -> Any:
    for part in name.split("."):
        fields = fields.get(part) if isinstance(fields, dict) else None
    return fields


def as_number(value: Any, kind: type) -> Any:
    """A number, also from YAML's text `1e-6`, or `None`."""
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    if number is None or kind is float:
        return number
    return int(number) if number.is_integer() else None


def read_tensors(path: Path) -> dict[str, Any]:
    """All entries of the checkpoint at `path`, memory-mapped if the format allows it."""
    return read_checkpoint(path)[0]


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """[`read_tensors`], and what the file says of its model beside them: `cfg` or `args` of fairseq, as plain data."""
    tensors: dict[str, Any] = {}
    beside: dict[str, Any] = {}
    for file in weight_files(path):
        if file.suffix == ".safetensors":
            try:
                content = load_file(file)
            except SafetensorError as error:
                raise ValueError(f"{file}: not a readable safetensors file: {error}") from error
        else:
            content = _load_pickle(file)
            if isinstance(content, dict):
                try:
                    said = {name: plain_data(content[name]) for name in CONFIGURATIONS if name in content}
                except ValueError as error:
                    raise ValueError(f"{file}: not a readable checkpoint: {error}.") from error
                beside.update({name: value for name, value in said.items() if isinstance(value, dict)})
            if isinstance(content, dict) and isinstance(content.get("model"), dict):
                content = content["model"]  # fairseq files also contain the configuration and the training state
            if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
                raise ValueError(f"{file}: got a {type(content).__name__}, expected a dictionary of tensors by name.")
        tensors.update(content)
    return tensors, beside
