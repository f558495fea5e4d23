"""The code that is saved with a checkpoint, its model card, and the upload to the Hub."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

# Saved with a checkpoint, so that it loads with trust_remote_code where the package is not installed.
CHECKPOINT_MODULES = (
    "configuration_sam",
    "hub_sam",
    "checks_sam",
    "films_sam",
    "containers_sam",
    "sound_files_sam",
    "audio_sam",
    "collator_sam",
    "chat_sam",
    "processing_sam",
    "kernels_sam",
    "mamba_sam",
    "generation_sam",
    "weights_sam",
    "modeling_sam",
)

MODEL_CARD = """---
library_name: transformers
pipeline_tag: audio-text-to-text
tags:
- audio
- mamba2
- audio-language-model
{metadata}---

# {name}

A SAM audio-language model: an EAT audio encoder ({encoder_layers} blocks of width {encoder_width}), the
`{connector}` connector ({slots} audio positions for ten seconds) and a Mamba-2 language model ({layers} layers of
width {width}). It reads up to 10.24 s of audio and answers in text.

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
inputs = processor(text="What do you hear?", audio="clip.wav", return_tensors="pt")
print(processor.batch_decode(model.generate(**inputs)[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

With the package `sam-alm` installed and imported (`import sam_alm`), `trust_remote_code` is not needed.

The architecture is that of "SAM: A Mamba-2 State-Space Audio-Language Model" (Lee, Jung, Lee); this is an independent
implementation. Weights of this repository were {made_from}; nothing is claimed about their quality here.
"""


def copy_checkpoint_modules(directory: str | os.PathLike, checkpoint: str | os.PathLike = "") -> None:
    """Copies [`CHECKPOINT_MODULES`] from the folder of this file into `directory`.

    Modules that are missing from that folder are skipped: transformers caches only what the loaded class imports.

    Args:
        directory (`str` or `os.PathLike`): Where the modules go.
        checkpoint (`str` or `os.PathLike`, *optional*): Where the running code was loaded from. If it is a local
            directory, modules that are missing beside this file are copied from there.
    """
    folders = [Path(__file__).parent, *([Path(checkpoint)] if checkpoint else [])]
    for name in (f"{module}.py" for module in CHECKPOINT_MODULES):
        source = next((folder / name for folder in folders if (folder / name).is_file()), None)
        target = Path(directory) / name
        if source is not None and not (target.exists() and target.samefile(source)):
            shutil.copyfile(source, target)


def model_card(config: Any, name: str) -> str:
    """The model card of a checkpoint, with the sizes, base models and licence of its `config`."""
    metadata = "".join(
        [
            f"license: {config.license}\n" if config.license else "",
            "base_model:\n" + "".join(f"- {base}\n" for base in config.base_models) if config.base_models else "",
        ]
    )
    return MODEL_CARD.format(
        metadata=metadata,
        name=name,
        encoder_layers=config.audio_config.num_hidden_layers,
        encoder_width=config.audio_config.hidden_size,
        connector=config.connector,
        slots=config.num_audio_slots,
        layers=config.text_config.num_hidden_layers,
        width=config.text_config.hidden_size,
        made_from="made from " + ", ".join(config.base_models) if config.base_models else "trained by their owner",
    )


def write_model_card(config: Any, directory: str | os.PathLike, name: str | None = None) -> None:
    """Writes a model card into `directory`, unless its owner has written one there.

    Args:
        config ([`SamConfig`]): Configuration of the checkpoint.
        directory (`str` or `os.PathLike`): Directory of README.md.
        name (`str`, *optional*): Name of the checkpoint, by default the directory's. A card with the default name is
            replaced by one with a given name.
    """
    path = Path(directory) / "README.md"
    default = model_card(config, path.parent.resolve().name)
    if not path.exists() or path.read_text(encoding="utf-8", errors="replace") == default:
        path.write_text(model_card(config, name) if name else default, encoding="utf-8")


def push_folder_to_hub(
    source: Any,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
    tags: list[str] | None = None,
):
    """Saves a model or processor into a temporary folder and uploads it in one commit.

    The method of transformers replaces the card that `save_pretrained` has written by a draft. Here the card of the
    repository stays. If it has none, or only such a draft, a model writes its own.

    Args:
        source ([`SamForConditionalGeneration`] or [`SamAudioLanguageProcessor`]): What to save.
        repo_id (`str`): Repository, created if it does not exist.
        commit_message, commit_description (`str`, *optional*): Title and description of the commit.
        private (`bool`, *optional*): Whether a new repository is private.
        token (`bool` or `str`, *optional*): Access token; the stored one by default.
        revision (`str`, *optional*): Branch, created if it does not exist.
        create_pr (`bool`, *optional*, defaults to `False`): Open a pull request instead of committing.
        max_shard_size (`int` or `str`, *optional*, defaults to `"50GB"`): Largest weights file.
        tags (`list[str]`, *optional*): Tags to add to the card.

    Returns:
        `huggingface_hub.CommitInfo`.
    """
    from huggingface_hub import HfApi, ModelCard
    from huggingface_hub.errors import RemoteEntryNotFoundError

    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    try:
        card = ModelCard.load(api.hf_hub_download(repo_id, "README.md"))
    except RemoteEntryNotFoundError:
        card = None
    if card is not None and "automatically generated" in card.content:
        card = None
    with tempfile.TemporaryDirectory() as folder:
        source.save_pretrained(folder, max_shard_size=max_shard_size)
        path = Path(folder) / "README.md"
        if card is None and hasattr(source, "config"):
            write_model_card(source.config, folder, name=repo_id)
            card = ModelCard.load(path)
        if card is not None:
            known = card.data.tags or []
            card.data.tags = [*known, *(tag for tag in tags or [] if tag not in known)]
            card.save(path)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message or f"Upload {type(source).__name__}",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
