"""Model cards and uploads to the Hub."""

import os
import tempfile
from pathlib import Path
from typing import Any

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
width {width}). It hears up to 10.24 s of audio and answers in text.

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


def model_card(config: Any, name: str) -> str:
    """A model card that says what `config` tells, for a checkpoint that has none of its own."""
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
    """Writes a model card into `directory`, unless it has one of its owner's.

    Args:
        config ([`SamConfig`]): What the card describes.
        directory (`str` or `os.PathLike`): Where README.md goes.
        name (`str`, *optional*): The checkpoint's name, by default the directory's. A card written by default gives
            way to one with a name.
    """
    path = Path(directory) / "README.md"
    default = model_card(config, path.parent.resolve().name)
    if not path.exists() or path.read_text(encoding="utf-8", errors="replace") == default:
        path.write_text(model_card(config, name) if name else default, encoding="utf-8")


def push_folder_to_hub(
    saves,
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
    """What `push_to_hub` of the model and of the processor do: save into a folder, upload it in one commit.

    transformers' own writes a card drafted for any model over the one that `save_pretrained` writes; here the
    repository's card stays, and where it has none (or only such a draft) it gets ours.

    Args:
        saves: The model or processor, whose `save_pretrained` fills the folder.
        repo_id (`str`): Repository, made if it is not there.
        commit_message, commit_description (`str`, *optional*): Of the commit.
        private (`bool`, *optional*): Whether a new repository is private.
        token (`bool` or `str`, *optional*): Access token; the stored one by default.
        revision (`str`, *optional*): Branch, made if it is not there.
        create_pr (`bool`, *optional*, defaults to `False`): Open a pull request instead of committing.
        max_shard_size (`int` or `str`, *optional*, defaults to `"50GB"`): Largest weights file.
        tags (`list[str]`, *optional*): Added to the card.

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
        saves.save_pretrained(folder, max_shard_size=max_shard_size)
        path = Path(folder) / "README.md"
        if card is None and hasattr(saves, "config"):
            write_model_card(saves.config, folder, name=repo_id)
            card = ModelCard.load(path)
        if card is not None:
            card.data.tags = [
                *(card.data.tags or []),
                *(tag for tag in tags or [] if tag not in (card.data.tags or [])),
            ]
            card.save(path)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message or f"Upload {type(saves).__name__}",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
