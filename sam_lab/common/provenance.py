"""What a result depends on: the versions of the packages, and the weights."""

import hashlib
import importlib.metadata
import platform
from pathlib import Path

import torch
from transformers.utils import cached_file

from configuration_sam import __version__

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy", "soundfile", "soxr")


def versions() -> dict[str, str]:
    """The versions of `sam-alm`, Python and the packages that numbers depend on."""
    installed = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"sam-alm": __version__, "python": platform.python_version(), **installed}


def checkpoint_hash(model: str | Path) -> str:
    """SHA-256 over the safetensors files of a checkpoint, in the order of their names.

    Args:
        model (`str` or `Path`): A folder, or a Hub id whose files are in the cache.

    Raises:
        FileNotFoundError: The checkpoint has no such files.
    """
    folder = Path(model) if Path(model).is_dir() else Path(cached_file(str(model), "config.json")).parent
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"model: {str(folder)!r} has no *.safetensors, expected a SAM checkpoint.")
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 of the tensors of a model, or of a part of one, by name, shape and value, whatever file or type they
    were stored in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy())  # exact from bf16
    return digest.hexdigest()
