"""Rank and similarity of the encoder's tokens, and their distance in the language model (paper, section 4).

[`effective_rank`] (equation 4) and [`token_similarity`] describe the tokens of one clip. [`analyse_encoder`] averages
them over clips, [`analyse_checkpoint`] does so for a checkpoint (Table 3) and [`analyse_run`] for every stage of a
training (Figure 2). [`state_update_distance`] computes Figure 3. `figures.py` shows the results as in the paper.

The paper does not name the clips of its numbers; compare encoders on the same clips ([`choose_clips`]).
"""

import hashlib
import os
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm.auto import tqdm
from transformers import AutoConfig

from audio_sam import SAMPLING_RATE, SamFeatureExtractor, load_audio
from configuration_sam import LANGUAGE_MODEL_SIZES, SamConfig
from mamba_sam import SamMamba2Model
from modeling_sam import SamAudioModel, SamConnector, SamForConditionalGeneration
from sam_lab.common.provenance import weights_hash
from sam_lab.data.clips import Clip, open_clips

TAU = 0.95  # section 4.1
ROUNDING = 1e-12  # of a share of the spectrum: an upper bound of float64's error in a sum of a few hundred values

# -- The tokens of one clip ---------------------------------------------------------------------------------------


def effective_rank(tokens: torch.Tensor, tau: float = TAU) -> int:
    """Number of dimensions that contain the share τ of the tokens' energy (paper, equation 4).

    The smallest k with `sum(s[:k] ** 2) >= tau * sum(s ** 2)`, where s are the singular values in descending order.
    The tokens are not centred. A share within 1e-12 of τ, float64's rounding, counts as reaching it.

    Args:
        tokens (`torch.Tensor` of shape `[N, d]`): One clip's tokens, on any device and of any type; the computation is
            in float64 on the CPU.
        tau (`float`, *optional*, defaults to 0.95): The share, greater than 0 and at most 1; 1 yields the usual rank.

    Returns:
        `int`: From 1 to `min(N, d)`.

    Raises:
        ValueError: Another shape, no tokens, a non-finite number, only zeros, `tau` out of range.
    """
    _check_tau(tau)
    tokens = _scaled(tokens)
    # The squared singular values are the eigenvalues of the smaller Gram matrix: twice as fast, and sums as exact.
    gram = tokens @ tokens.T if tokens.shape[0] <= tokens.shape[1] else tokens.T @ tokens
    energies = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
    shares = energies.cumsum(0) / energies.sum()
    return int((shares < tau - ROUNDING).sum()) + 1


def token_similarity(tokens: torch.Tensor) -> float:
    """The mean cosine between different tokens of a clip (paper, Table 3).

    The sum over all pairs is computed from the squared length of the sum of the unit vectors, without visiting pairs.

    Args:
        tokens (`torch.Tensor` of shape `[N, d]`): One clip's tokens, at least two, on any device and of any type; the
            computation is in float64 on the CPU.

    Returns:
        `float`: From -1 / (N - 1) to 1.

    Raises:
        ValueError: Another shape, fewer than two tokens, a non-finite number, a zero token (which has no direction).
    """
    tokens = _scaled(tokens)
    count = len(tokens)
    if count < 2:
        raise ValueError(f"tokens: got shape {tuple(tokens.shape)}, expected at least two tokens to compare.")
    lengths = tokens.norm(dim=1, keepdim=True)
    if (lengths == 0).any():
        raise ValueError(f"tokens: number {int(lengths.argmin())} is zero, and has no direction to compare.")
    total = (tokens / lengths).sum(dim=0).square().sum()
    return float((total - count) / (count * (count - 1)))


def _check_tau(tau: float) -> None:
    if not 0 < tau <= 1:
        raise ValueError(f"tau: got {tau!r}, expected a share greater than 0 and at most 1, such as 0.95.")


def _scaled(tokens: torch.Tensor) -> torch.Tensor:
    """Checked tokens in float64, scaled to a largest value of 1: both measures ignore scale; squares stay finite."""
    tokens = torch.as_tensor(tokens).detach().cpu().double()
    if tokens.ndim != 2 or not tokens.numel():
        raise ValueError(f"tokens: got shape {tuple(tokens.shape)}, expected [tokens, dimensions] of one clip.")
    if not tokens.isfinite().all():
        raise ValueError("tokens: got numbers that are not finite (NaN or infinity).")
    largest = tokens.abs().max()
    if largest == 0:
        raise ValueError("tokens: got nothing but zeros, which have neither rank nor direction.")
    return tokens / largest


# -- Clips --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClipSet:
    """Clips to analyse, from [`choose_clips`].

    Args:
        source (`str`): Folder or dataset of the clips.
        clips (`tuple[Clip, ...]`): The clips that [`open_clips`] found.
        available (`int`): Number of clips in the source.
        limit (`int`, *optional*): Requested number of clips.
        seed (`int`, *optional*, defaults to 0): Seed of the choice.
    """

    source: str
    clips: tuple[Clip, ...]
    available: int
    limit: int | None = None
    seed: int = 0

    @property
    def names(self) -> list[str]:
        """The clips' paths in the source; the row number for a clip without a path."""
        return [clip.path or clip.key for clip in self.clips]

    def to_dict(self) -> dict[str, Any]:
        """JSON fields; `sha256` is the hash of the names, one per line."""
        listed = "".join(f"{name}\n" for name in self.names).encode()
        return {
            "source": self.source,
            "available": self.available,
            "limit": self.limit,
            "seed": self.seed,
            "count": len(self.clips),
            "sha256": hashlib.sha256(listed).hexdigest(),
            "names": self.names,
        }


def choose_clips(source: str | Path, limit: int | None = None, seed: int = 0) -> ClipSet:
    """The clips of a folder or a dataset, or a random choice of them.

    Args:
        source (`str` or `Path`): As in [`open_clips`]: a folder of audio files, sorted by name; or a dataset, such as
            a `.csv`, `.json` or `.jsonl` table with a column `audio`, `file`, `path` or `file_name`, relative to the
            table. Repeated files are used once. Audio inside the dataset is loaded into memory.
        limit (`int`, *optional*): Largest number of clips, drawn without replacement; all by default.
        seed (`int`, *optional*, defaults to 0): Seed of the draw. The chosen clips stay in the order of the source.

    Raises:
        FileNotFoundError, ValueError: As in [`open_clips`]; `limit` is not positive.
    """
    source = str(Path(source).expanduser())
    if limit is not None and limit < 1:
        raise ValueError(f"limit: got {limit}, expected a positive number of clips, or None for all.")
    found = open_clips(source).clips(0, 1)
    clips = list({clip.audio if isinstance(clip.audio, str) else clip.key: clip for clip in found}.values())
    available = len(clips)
    if limit is not None and limit < available:
        clips = [clips[index] for index in sorted(random.Random(seed).sample(range(available), limit))]
    return ClipSet(source, tuple(clips), available, limit, seed)


# -- Encoders -----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def analyse_encoder(
    model,
    feature_extractor: SamFeatureExtractor,
    clips: ClipSet | Sequence[Any],
    tau: float = TAU,
    batch_size: int = 16,
    with_connector: bool = False,
) -> dict[str, Any]:
    """[`effective_rank`] and [`token_similarity`] of an encoder's output for each clip, and their mean.

    Args:
        model ([`SamAudioModel`] or [`SamForConditionalGeneration`]): The encoder, or a model that contains one; on any
            device, of any type.
        feature_extractor ([`SamFeatureExtractor`]): Its feature extractor.
        clips ([`ClipSet`] or list): A list contains anything that [`load_audio`] reads, except bare arrays. Clips over
            10.24 s are truncated and short ones padded, as in the model.
        tau (`float`, *optional*, defaults to 0.95): As in [`effective_rank`].
        batch_size (`int`, *optional*, defaults to 16): Clips that are encoded together.
        with_connector (`bool`, *optional*, defaults to `False`): Also measure the connector's output,
            `[64 or 512, D]`; needs a whole model.

    Returns:
        `dict`: `tau`; `effective_rank` and `token_similarity`, each with `mean`, `std` (over clips; `None` for one
        clip), `min` and `max`; `shape` of a clip's tokens; `count`; `truncated` (number of clips over 10.24 s);
        `failed` (`audio` and `error` of each clip that could not be measured); `clips` (`audio`, `seconds` and both
        numbers of each); with a connector also `connector`, with its two measures and `shape`.

    Raises:
        ValueError: No clip could be measured, `with_connector` for an encoder without one, `tau` or `batch_size` out
            of range.
    """
    _check_tau(tau)
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, expected a positive number of clips.")
    whole = model.config.model_type == SamConfig.model_type
    if with_connector and not whole:
        raise ValueError("with_connector: got only an encoder, expected a whole model, which has the connector.")
    encoder = model.model.audio_tower if whole else model
    if isinstance(clips, ClipSet):
        names, sources = clips.names, [clip.audio for clip in clips.clips]
    else:
        names = [str(c) if isinstance(c, (str, os.PathLike)) else f"clip {n}" for n, c in enumerate(clips)]
        sources = clips
    measured: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    shapes: dict[str, list[int]] = {}
    truncated = 0
    for begin in tqdm(range(0, len(sources), batch_size), desc="encoding", unit="batch", leave=False):
        rows, waveforms = [], []
        for name, source in zip(names[begin : begin + batch_size], sources[begin : begin + batch_size]):
            try:
                waveforms.append(load_audio(source))
            except (OSError, TypeError, ValueError, RuntimeError, MemoryError) as error:
                failed.append({"audio": name, "error": str(error)})
            else:
                rows.append({"audio": name, "seconds": round(len(waveforms[-1]) / SAMPLING_RATE, 3)})
        if not rows:
            continue
        truncated += sum(feature_extractor.num_frames(len(w)) > feature_extractor.max_frames for w in waveforms)
        features = feature_extractor(waveforms, SAMPLING_RATE, "pt", "truncate", encoder.device)["input_features"]
        outputs = {"encoder": encoder(features).last_hidden_state}
        if with_connector:
            outputs["connector"] = model.model.connector(outputs["encoder"])
        shapes = {part: list(tokens.shape[1:]) for part, tokens in outputs.items()}
        for index, row in enumerate(rows):
            try:
                numbers = {part: _numbers(tokens[index], tau) for part, tokens in outputs.items()}
            except ValueError as error:
                failed.append({"audio": row["audio"], "error": str(error)})
            else:
                row |= numbers["encoder"]
                measured.append(row | ({"connector": numbers["connector"]} if with_connector else {}))
    if not measured:
        first = f"; the first: {failed[0]['audio']}: {failed[0]['error']}" if failed else ""
        raise ValueError(f"clips: none of {len(sources)} could be measured{first}")
    result = {"tau": tau, **_summaries(measured), "shape": shapes["encoder"], "count": len(measured)}
    if with_connector:
        result["connector"] = {**_summaries([row["connector"] for row in measured]), "shape": shapes["connector"]}
    return {**result, "truncated": truncated, "failed": failed, "clips": measured}


def _numbers(tokens: torch.Tensor, tau: float) -> dict[str, Any]:
    return {"effective_rank": effective_rank(tokens, tau), "token_similarity": token_similarity(tokens)}


def _summaries(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    summaries = {}
    for key in ("effective_rank", "token_similarity"):
        values = [row[key] for row in rows]
        std = statistics.stdev(values) if len(values) > 1 else None
        summaries[key] = {"mean": statistics.fmean(values), "std": std, "min": min(values), "max": max(values)}
    return summaries


def analyse_checkpoint(
    source: str | Path,
    clips: ClipSet | Sequence[Any],
    tau: float = TAU,
    batch_size: int = 16,
    with_connector: bool = False,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    feature_extractor: SamFeatureExtractor | None = None,
) -> dict[str, Any]:
    """[`analyse_encoder`] of a checkpoint. Only its encoder is loaded, or the whole model if `with_connector`.

    Args:
        source (`str` or `Path`): A SAM checkpoint, or only an encoder, such as a stage's `encoder/`: a directory or a
            Hub id.
        clips, tau, batch_size, with_connector: As in [`analyse_encoder`].
        device (`str`, *optional*, defaults to `"cpu"`): The device to encode on.
        dtype (`str`, *optional*, defaults to `"float32"`): The type to encode in.
        feature_extractor ([`SamFeatureExtractor`], *optional*): By default the checkpoint's; for an encoder without
            one that of EAT.

    Returns:
        `dict`: The result of [`analyse_encoder`], and `checkpoint`, `encoder_sha256` (of the encoder's weights,
        independent of the file and type that they are stored in), `stored_dtype`, `dtype`, `features` (`mean` and
        `std` of the normalisation), `size` ([`size_name`]) and `connector_layout`, both `None` for an encoder alone.

    Raises:
        ValueError: Weights missing in the checkpoint; and as in [`analyse_encoder`].
    """
    config = AutoConfig.from_pretrained(source)
    whole = config.model_type == SamConfig.model_type
    model = _load(SamForConditionalGeneration if with_connector and whole else SamAudioModel, source)
    encoder = model.model.audio_tower if with_connector and whole else model
    if feature_extractor is None and whole:
        feature_extractor = SamFeatureExtractor.from_pretrained(source)
    elif feature_extractor is None:
        feature_extractor = SamFeatureExtractor(config.num_mel_bins, max_frames=config.max_frames)
    about = {
        "checkpoint": str(source),
        "encoder_sha256": weights_hash(encoder),
        "stored_dtype": str(encoder.dtype).removeprefix("torch."),
        "dtype": dtype,
        "features": {"mean": feature_extractor.mean, "std": feature_extractor.std},
        "size": size_name(config) if whole else None,
        "connector_layout": config.connector if whole else None,
    }
    model.to(device=device, dtype=getattr(torch, dtype))
    return {**about, **analyse_encoder(model, feature_extractor, clips, tau, batch_size, with_connector)}


def _load(model_class, source: str | Path):
    """A model, or only its encoder, in the stored type."""
    model, info = model_class.from_pretrained(source, dtype="auto", output_loading_info=True)
    for name, what in (("missing_keys", "lacks"), ("unexpected_keys", "has no place for")):
        if info[name]:
            raise ValueError(f"checkpoint: {source} {what} {len(info[name])} tensors, such as {min(info[name])}.")
    return model


def size_name(config: SamConfig) -> str:
    """The language model's size as in the paper, `"130M"`, `"780M"` or `"2.7B"`; for other sizes the number of
    parameters in millions, such as `"3.6M"`."""
    text = config.text_config
    for name, sizes in LANGUAGE_MODEL_SIZES.items():
        if sizes == (text.num_hidden_layers, text.hidden_size):
            return name.upper()
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in SamMamba2Model(text).parameters())
    return f"{count / 1e6:.1f}M"


# -- Stages of a training (Figure 2) ------------------------------------------------------------------------------


def analyse_run(
    run: str | Path, start: Mapping[str, Any], clips: ClipSet | Sequence[Any], **options
) -> dict[str, Any]:
    """The encoder after each finished stage of a training, a curve of the paper's Figure 2.

    Args:
        run (`str` or `Path`): Output folder of `sam-alm train`, with the recipe and each stage's resulting encoder in
            `stage-N/encoder`, rounded to bf16.
        start (`dict`): [`analyse_checkpoint`] of the encoder before training, the curve's first point.
        clips, options: As in [`analyse_checkpoint`].

    Returns:
        `dict`: `run`, `size`, `connector_layout`, `unfinished` (numbers of the recipe's other stages) and `points`:
        `start`, with `stage` `"start"`, and [`analyse_checkpoint`] of each stage with the recipe's `stage`, `name` and
        `trains`.

    Raises:
        FileNotFoundError: No `recipe.yaml`, or no finished stage.
    """
    run = Path(run).expanduser()
    if not (run / "recipe.yaml").is_file():
        raise FileNotFoundError(f"run: {str(run)!r} has no recipe.yaml, expected an output folder of sam-alm train.")
    keys = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))  # flat, as `claim` writes them
    numbers = sorted(int(key.split(".")[1]) for key in keys if key.startswith("stages.") and key.endswith(".name"))
    finished = [number for number in numbers if (run / f"stage-{number}" / "finished.json").is_file()]
    if not finished:
        raise FileNotFoundError(f"run: {str(run)!r} has no stage-N/finished.json; none of its stages is finished.")
    points = [{"stage": "start", **start}]
    for number in finished:
        folder = run / f"stage-{number}"
        extractor = SamFeatureExtractor.from_pretrained(folder / "last")
        point = analyse_checkpoint(folder / "encoder", clips, feature_extractor=extractor, **options)
        points.append(
            {"stage": number, **{key: keys[f"stages.{number}.{key}"] for key in ("name", "trains")}, **point}
        )
    config = SamConfig.from_pretrained(run / f"stage-{finished[-1]}" / "last")
    return {
        "run": str(run),
        "size": size_name(config),
        "connector_layout": config.connector,
        "unfinished": [number for number in numbers if number not in finished],
        "points": points,
    }


# -- Distance between states (Figure 3) ---------------------------------------------------------------------------


def slot_positions(config: SamConfig) -> torch.Tensor:
    """The slot of each of the encoder's tokens, in the model's own order of tokens and slots.

    Args:
        config ([`SamConfig`]): Only its connector and encoder matter.

    Returns:
        `torch.Tensor` of shape `[64 time steps, 8 bands]`, int64.
    """
    audio = config.audio_config
    with torch.device("meta"):  # only the order is needed, not the weights
        connector = SamConnector(config)
    tokens = torch.arange(audio.num_time_steps * audio.num_bands)  # number = time * bands + band
    features = connector.arrange(tokens[None, :, None])[0]  # [features, tokens in each]
    places = torch.tensor(config.audio_slot_pattern).nonzero()  # [features, 1]; other slots are separators
    positions = torch.empty_like(tokens)
    positions[features] = places.expand_as(features)
    return positions.view(audio.num_time_steps, audio.num_bands)


def state_update_distance(config: SamConfig) -> dict[str, int]:
    """Number of state updates between neighbouring audio tokens (paper, section 4.2 and Figure 3).

    Args:
        config ([`SamConfig`]): Only its connector and encoder matter.

    Returns:
        `dict`: `next_time_step` and `next_band`, each the same for all tokens: 1 and 0 for `concatenation` (a slot
        contains all bands of a time step), 9 and 1 for `time_major`, 1 and 65 for `frequency_major`; and `slots`.
    """
    positions = slot_positions(config)
    return {
        "next_time_step": int(positions.diff(dim=0).abs().max()),
        "next_band": int(positions.diff(dim=1).abs().max()),
        "slots": config.num_audio_slots,
    }
