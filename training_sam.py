"""From rows of (audio, prompt, answer) to training: LoRA, parameter types, features, Trainer.

The readers of rows and `RecordBatches` live in modules of their own and can be had from here.
"""

import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from audio_sam import SAMPLING_RATE, load_audio
from augmentation_sam import AugmentLogMel
from batches_sam import BROKEN, COUNTS, BatchesCallback, RecordBatches, compute_features
from configuration_sam import SamAudioConfig
from modeling_sam import SamAudioBlock, positions_with_loss, sine_cosine_positions
from processing_sam import IGNORE_INDEX
from records_sam import read_openaqa, read_reasonaqa
from streams_sam import SourceCounts
from tabular_sam import clip_key, read_table

logger = logging.get_logger(__name__)

# As a pattern, because the bare names would also match an `out_proj` outside the language model.
LORA_TARGETS = r".*language_model\.layers\.\d+\.mixer\.(in_proj|out_proj)"

# ---------------------------------------------------------------------------------------------------------------
# Parameters
# ---------------------------------------------------------------------------------------------------------------


def lora_config(rank: int, modules_to_save: Sequence[str] = (), dropout: float = 0.0) -> LoraConfig:
    """LoRA on every `in_proj` and `out_proj` of the language model (paper, section 3.1), with alpha = 2 rank.

    Args:
        rank (`int`): Rank of the adapters; the paper takes 8 to 256.
        modules_to_save (list of `str`, *optional*): Modules that are trained whole and saved with the adapter, such
            as `"connector"` and `"audio_tower"`.
        dropout (`float`, *optional*, defaults to 0): Share of an adapter's inputs that training drops; LTU's is 0.05.

    Raises:
        ValueError: `rank` is not a positive integer, `dropout` not from 0 to 1.
    """
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank: got {rank!r}, expected a positive integer.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: got {dropout!r}, expected a number from 0 to 1, less than 1.")
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=dropout,
        target_modules=LORA_TARGETS,
        modules_to_save=list(modules_to_save) or None,
    )


def upcast_trainable(model: torch.nn.Module) -> int:
    """Makes every trainable parameter float32, in place, and returns how many numbers are trained.

    A checkpoint stored in bf16 loads as bf16, where small updates round away: at a learning rate of 1e-4 most of
    them. So what is trained, and with it the optimiser's state, is float32; what is frozen stays as it is.

    Args:
        model (`torch.nn.Module`): The model, after adapters were added and parameters frozen.

    Raises:
        ValueError: Nothing is trainable.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("model: it has no trainable parameter, expected some; unfreeze a part or add LoRA.")
    for parameter in trainable:
        parameter.data = parameter.data.float()
    return sum(parameter.numel() for parameter in trainable)


def follow_autocast(model: torch.nn.Module) -> None:
    """Makes LoRA layers leave their inputs as they are under autocast.

    peft casts them to the adapter's float32, before dropout, only for autocast to cast them back: the same numbers.
    Without autocast peft's cast stays.

    Args:
        model (`torch.nn.Module`): A model, with or without adapters; calling it again changes nothing.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer) and _leave_inputs not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_leave_inputs)


def _leave_inputs(module, args):
    module.cast_input_dtype_enabled = not torch.is_autocast_enabled(args[0].device.type)


def check_float32(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Asserts that what is trained, and the optimiser's state of it, is float32.

    Args:
        model (`torch.nn.Module`): The model.
        optimizer (`torch.optim.Optimizer`): Its optimiser, after at least one step.

    Raises:
        AssertionError: Naming the first that is not.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32, f"{name} is trained in {parameter.dtype}, expected float32"
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                assert value.dtype == torch.float32, f"the optimiser keeps {name} in {value.dtype}, expected float32"


def save_checkpoint(model, processor, folder: str | Path) -> None:
    """Saves model and processor so that a `config.json`, which comes last, means that all the rest is there.

    Args:
        model ([`SamForConditionalGeneration`]): The model.
        processor ([`SamAudioLanguageProcessor`]): Its processor.
        folder (`str`): Where they go; what else is there stays.
    """
    folder = Path(folder)
    unfinished = folder / "unfinished" / folder.resolve().name  # the model card's title is the folder's name
    shutil.rmtree(unfinished.parent, ignore_errors=True)
    if (folder / "README.md").exists():
        unfinished.mkdir(parents=True)
        shutil.copy(folder / "README.md", unfinished)  # an owner's model card stays
    model.save_pretrained(unfinished)
    processor.save_pretrained(unfinished)
    (folder / "config.json").unlink(missing_ok=True)
    for file in sorted(unfinished.iterdir(), key=lambda file: file.name == "config.json"):
        os.replace(file, folder / file.name)
    shutil.rmtree(unfinished.parent)


def save_state(state: dict[str, Any], file: Path) -> None:
    """`torch.save` that a kill does not break: the file is the one before until the new one is whole."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    torch.save(state, unfinished)
    os.replace(unfinished, file)


# ---------------------------------------------------------------------------------------------------------------
# Features
# ---------------------------------------------------------------------------------------------------------------


def extract_features(
    clips: Sequence[Any],
    processor,
    device="cpu",
    num_threads: int = 8,
    read: Callable[[Any], np.ndarray | None] = load_audio,
) -> torch.Tensor:
    """Log-mel of many clips, in half precision, to be kept where the training runs.

    Args:
        clips (list): Anything that `read` reads; of clips over 10.24 s the beginning is taken.
        processor ([`SamAudioLanguageProcessor`]): Its feature extractor is used.
        device (*optional*, defaults to `"cpu"`): Where the result lives: 256 KiB a clip.
        num_threads (`int`, *optional*, defaults to 8): Threads that read and decode files.
        read (callable, *optional*, defaults to [`load_audio`]): Gives a clip's waveform, or `None` to leave it out.

    Returns:
        `torch.Tensor`: `[clips, 1024, 128]`, float16, normalised, of the clips that are not left out.
    """
    extractor = processor.feature_extractor
    shape = (len(clips), extractor.max_frames, extractor.feature_size)
    features = torch.empty(shape, dtype=torch.float16, device=device)
    count = 0
    with ThreadPoolExecutor(num_threads) as pool, tqdm(total=len(clips), desc="features", unit="clip") as bar:
        for begin in range(0, len(clips), 64):
            part = clips[begin : begin + 64]
            heard = (waveform for waveform in pool.map(read, part) if waveform is not None)
            if waveforms := [waveform[: extractor.max_frames * 160 + 240] for waveform in heard]:
                batch = extractor(waveforms, SAMPLING_RATE, return_tensors="pt", overflow="truncate", device=device)
                features[count : count + len(waveforms)] = batch["input_features"]
            count += len(waveforms)
            bar.update(len(part))
    return features[:count]


class CachedRows(torch.utils.data.Dataset):
    """Rows whose log-mel was computed once and stays on the training device; rows without audio are text.

    With small data the loader is the bottleneck: this takes reading, decoding and the filter bank out of the loop.
    Give it to Trainer with `dataloader_num_workers=0` and `dataloader_pin_memory=False`. Rows whose clip cannot be read
    are left out and counted by source: [`~CachedRows.report`].

    Args:
        table (`datasets.Dataset`): Rows `audio`, `prompt`, `answer`, as [`read_table`] gives them.
        processor ([`SamAudioLanguageProcessor`]): The processor.
        device (*optional*, defaults to `"cpu"`): Where the features live.
        num_threads (`int`, *optional*, defaults to 8): Threads that read and decode files.
        text_cutoff (`int`, *optional*): Tokens of template, prompt and answer that are kept, as in [`RecordBatches`];
            a warning counts the rows that are cut.
        max_broken (`float`, *optional*, defaults to 0.01): The largest share of rows whose clip cannot be read, and one
            more, unless it is 0: as in [`RecordBatches`], so that what trains from disk also trains from memory.
        sources (list of `str`, *optional*): What each row is counted as; `"unnamed"` by default.

    Raises:
        ValueError: Too many clips cannot be read, no row has a label, or `sources` are not as many as the rows.
    """

    def __init__(
        self,
        table: datasets.Dataset,
        processor,
        device="cpu",
        num_threads: int = 8,
        text_cutoff: int | None = None,
        max_broken: float = 0.01,
        sources: Sequence[str] | None = None,
    ):
        self.counts = SourceCounts(max_broken)
        sources = ["unnamed"] * len(table) if sources is None else sources
        if len(sources) != len(table):
            raise ValueError(
                f"sources: got {len(sources)} for a table of {len(table)} rows, expected one for each row."
            )
        clips = table["audio"][:] if len(table) else []
        keys = [clip_key(clip) for clip in clips]
        first = {key: index for index, key in reversed(list(enumerate(keys))) if key is not None}
        errors, long = {}, set()  # by key

        def read(key):
            try:
                waveform = load_audio(clips[first[key]])
            except BROKEN as error:
                errors[key] = error
                return None
            if processor.feature_extractor.num_frames(len(waveform)) > processor.feature_extractor.max_frames:
                long.add(key)
            return waveform

        self.features = extract_features(list(first), processor, device, num_threads, read)
        place = {key: row for row, key in enumerate(key for key in first if key not in errors)}
        kept = [index for index, key in enumerate(keys) if key not in errors]
        self.clip = [place.get(keys[index]) for index in kept]  # None: a row of text
        table, self.rows = table.select(kept), []
        lost = {"seen": range(len(keys)), "broken": [index for index, key in enumerate(keys) if key in errors]}
        lost["truncated"] = [index for index, key in enumerate(keys) if key in long]
        if len(table):
            slots = [int(clip is not None) for clip in self.clip]
            tokens = processor._encode_text(table["prompt"][:], slots, table["answer"][:], False, text_cutoff)
            if num_cut := sum(tokens["is_cut"]):
                logger.warning(
                    f"{num_cut} of {len(table)} rows are longer than {text_cutoff} text tokens and are cut."
                )
            pairs = zip(tokens["input_ids"], tokens["labels"])
            self.rows = [{"input_ids": ids, "labels": labels} for ids, labels in pairs]
            lost["cut"] = compress(kept, tokens["is_cut"])
            lost["unanswered"] = [index for index, row in zip(kept, self.rows) if set(row["labels"]) == {IGNORE_INDEX}]
        for kind, indices in lost.items():
            for source, number in Counter(sources[index] for index in indices).items():
                self.counts.add(source, kind, number)
        error = next((errors[key] for key in keys if key in errors), None)
        self.counts.check(error)
        if error is not None:
            logger.warning(f"{len(lost['broken'])} of {len(keys)} rows with unreadable audio are left out: {error}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip = self.clip[index]
        return self.rows[index] if clip is None else {**self.rows[index], "input_features": self.features[clip]}

    def report(self) -> dict[str, dict[str, int]]:
        """What became of the table's rows, by source, in the form of [`~RecordBatches.report`]; each counts once."""
        return self.counts.table()


# ---------------------------------------------------------------------------------------------------------------
# A start without labels
# ---------------------------------------------------------------------------------------------------------------


class MaskedPatches(nn.Module):
    """Encoder and decoder of a masked autoencoder, by which the encoder begins without labels: EAT's own idea.

    Three quarters of the patches are hidden, the encoder sees the others, and the decoder, thrown away afterwards, says
    what was hidden: each patch normalised to mean 0 and variance 1, and its mean and spread apart. Without the latter
    the encoder learned nothing in 2,400 steps: most of a normalised patch is noise, and the level is what the
    surroundings tell.

    Args:
        encoder ([`SamAudioModel`]): The encoder to train.
        hidden_size (`int`, *optional*, defaults to 128): Width of the decoder.
        num_layers (`int`, *optional*, defaults to 2): Blocks of the decoder.
        mask_ratio (`float`, *optional*, defaults to 0.75): Share of the patches that are hidden.
    """

    def __init__(self, encoder, hidden_size=128, num_layers=2, mask_ratio=0.75):
        super().__init__()
        config = SamAudioConfig(
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=hidden_size // 64,
            intermediate_size=4 * hidden_size,
            attn_implementation="sdpa",
        )
        self.encoder = encoder
        self.patch = encoder.config.patch_size
        self.mask_ratio = mask_ratio
        self.enter = nn.Linear(encoder.config.hidden_size, hidden_size)
        self.hidden = nn.Parameter(0.02 * torch.randn(hidden_size))
        self.blocks = nn.ModuleList(SamAudioBlock(config) for _ in range(num_layers))
        self.leave = nn.Linear(hidden_size, self.patch**2 + 2)  # pixels, mean, logarithm of the spread
        positions = sine_cosine_positions(hidden_size, encoder.config.num_time_steps, encoder.config.num_bands)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, features: torch.Tensor, order: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            features (`torch.Tensor` of shape `[B, T, bins]`): Windows of normalised log-mel.
            order (`torch.Tensor` of shape `[B, n]`): Patches of each window in random order: the first are seen.
            start (`int`): The window's place in the ten seconds, in patches of time; its positions begin there.

        Returns:
            Mean square error of the pixels, over the hidden patches that are not constant, and of mean and spread.
        """
        batch, count = order.shape
        kept = count - int(count * self.mask_ratio)
        first = start * self.encoder.config.num_bands
        patches = self.encoder.local_encoder(features)
        patches = patches + self.encoder.positions[first : first + count].to(patches.dtype)
        seen = order[:, :kept, None]
        encoded = self.enter(self.encoder.encode(patches.gather(1, seen.expand(-1, -1, patches.shape[2]))))
        tokens = self.hidden.to(encoded.dtype).expand(batch, count, -1)
        tokens = tokens.scatter(1, seen.expand(-1, -1, encoded.shape[2]), encoded)
        x = tokens + self.positions[first : first + count].to(tokens.dtype)
        for block in self.blocks:
            x = block(x)
        hidden = order[:, kept:, None]
        predicted = self.leave(x.gather(1, hidden.expand(-1, -1, x.shape[2]))).float()

        # [B, T, F] -> [B, time * band, 16 * 16], in the order of the encoder's patches
        target = features.float().unflatten(1, (-1, self.patch)).unflatten(3, (-1, self.patch))
        target = target.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
        target = target.gather(1, hidden.expand(-1, -1, target.shape[2]))
        variance, mean = torch.var_mean(target, dim=2, keepdim=True)
        spread = (variance + 1e-4).sqrt()
        weight = (variance > 1e-4).float()  # digital silence says nothing
        pixels, level = predicted.split([self.patch**2, 2], dim=2)
        error = (pixels - (target - mean) / spread).square() * weight
        error = error.sum() / (weight.sum() * target.shape[2]).clamp(min=1)
        # both of about unit variance over all patches
        return error, (level - torch.cat([2 * mean, spread.log()], dim=2)).square().mean()


# ---------------------------------------------------------------------------------------------------------------
# Trainer
# ---------------------------------------------------------------------------------------------------------------


class SamTrainer(Trainer):
    """`Trainer` that trains on [`RecordBatches`], and changes the clips of training batches with [`AugmentLogMel`].

    Args:
        augment ([`AugmentLogMel`], *optional*): What to do with training clips, on the device; nothing by default.
        max_seconds (`float`, *optional*): Train for so long instead of `max_steps` or epochs: the learning rate rises
            for a twentieth of the time and then falls as a cosine. In one process only.
        train_batches ([`RecordBatches`], *optional*): What to train on, instead of `train_dataset`. Its `num_steps`
            counts where `args.max_steps` is not positive, never `args.num_train_epochs`. Nothing shards its batches
            again, `features="device"` is computed on the device, and `train(resume_from_checkpoint=...)` goes on with
            the step after the checkpoint's without decoding what came before.
        kwargs: `Trainer`'s.

    Raises:
        ValueError: `max_seconds` with several processes, which would not stop at the same step; `train_batches` that
            do not fit `args`, or come together with `train_dataset`.
    """

    def __init__(
        self,
        *args,
        augment: AugmentLogMel | None = None,
        max_seconds: float | None = None,
        train_batches: RecordBatches | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        follow_autocast(self.model)
        self.augment = augment
        self.clock = None
        self.train_batches = train_batches
        self.progress = None if train_batches is None else BatchesCallback(train_batches)
        if max_seconds is not None:
            if self.args.world_size > 1:
                raise ValueError(f"max_seconds: got it with {self.args.world_size} processes, expected one.")
            self.clock = SecondsCallback(max_seconds)
            self.args.max_steps = 1_000_000  # the clock ends it
            self.add_callback(self.clock)
        if train_batches is not None:
            self._check_batches()
            if self.args.max_steps <= 0:
                self.args.max_steps = train_batches.num_steps
            train_batches.stop_at(self.args.max_steps)
            self.add_callback(self.progress)

    def _check_batches(self) -> None:
        args, batches = self.args, self.train_batches
        if self.train_dataset is not None:
            raise ValueError("train_batches and train_dataset: got both, expected one of them.")
        if args.n_gpu > 1:
            raise ValueError(
                f"train_batches: got one process with {args.n_gpu} GPUs, expected one process for each; start it with "
                "accelerate launch or torchrun, or set CUDA_VISIBLE_DEVICES."
            )
        for name, found, meant in (
            ("batch_size", batches.batch_size, ("per_device_train_batch_size", args.per_device_train_batch_size)),
            ("accumulation", batches.accumulation, ("gradient_accumulation_steps", args.gradient_accumulation_steps)),
            ("num_processes", batches.num_processes, ("world_size", args.world_size)),
            ("process_index", batches.process_index, ("process_index", args.process_index)),
        ):
            if found != meant[1]:
                raise ValueError(
                    f"train_batches: its {name} is {found}, expected {meant[1]} as args.{meant[0]}; make both the same."
                )
        if batches.start_step:
            raise ValueError(
                f"train_batches: its start_step is {batches.start_step}, expected 0; train(resume_from_checkpoint=...) "
                "finds the step itself."
            )

    def get_train_dataloader(self):
        """As in `Trainer`; over `train_batches`, which are sharded already and so bypass accelerate."""
        if self.train_batches is None:
            return super().get_train_dataloader()
        args, on_gpu = self.args, self.args.device.type == "cuda"
        return torch.utils.data.DataLoader(
            self.train_batches,
            batch_size=None,
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor if args.dataloader_num_workers else None,
            persistent_workers=args.dataloader_persistent_workers,
            pin_memory=args.dataloader_pin_memory and on_gpu,
            generator=torch.Generator(),  # of its own, so that dropout does not depend on when a loader starts
        )

    def _get_num_items_in_batch(self, batch_samples, device):
        """As in `Trainer`, but counted on the device: `Trainer` copies its count there and waits for the step before."""
        on_device = [
            {name: self._without_waiting(batch[name]) for name in ("labels", "shift_labels") if name in batch}
            for batch in batch_samples
        ]
        return super()._get_num_items_in_batch(on_device, device)

    def _without_waiting(self, value):
        """Pinned memory moves to the device while that works; anything else stays for `Trainer` to move."""
        if torch.is_tensor(value) and value.is_pinned():
            return value.to(self.args.device, non_blocking=True)
        return value

    def _prepare_inputs(self, inputs):
        """As in `Trainer`, but of pinned memory without waiting for the GPU, which works on the step before."""
        inputs, device = dict(inputs), self.args.device
        labels = inputs.get("labels")
        if self.train_batches is not None and self.model.training and labels is not None and not labels.is_cuda:
            index = positions_with_loss(labels)
            inputs["loss_index"] = index.pin_memory() if device.type == "cuda" else index
        return super()._prepare_inputs({name: self._without_waiting(value) for name, value in inputs.items()})

    def training_step(self, model, inputs, *args, **kwargs):
        """As in `Trainer`; what was read for the micro-batch counts."""
        if self.progress is not None:
            self.progress.count(getattr(inputs, "read", {}))  # a loader of one's own has none
        return super().training_step(model, inputs, *args, **kwargs)

    def _save_checkpoint(self, model, trial):
        """As in `Trainer`; the checkpoint also keeps what all processes have read."""
        if self.progress is not None:
            self.state.stateful_callbacks[COUNTS] = self.progress.report()
        super()._save_checkpoint(model, trial)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As in `Trainer`, after log-mel and augmentation; where the logits are not asked for, of the loss alone."""
        if "waveforms" in inputs:
            inputs = compute_features(inputs, self.train_batches.processor)
        if self.augment is not None and model.training and inputs.get("input_features") is not None:
            inputs = {**inputs, "input_features": self.augment(inputs["input_features"])}
        if torch.is_tensor(num_items_in_batch):
            num_items_in_batch = num_items_in_batch.clamp(min=1)  # a step without any label: its loss is 0, not NaN
        index = inputs.pop("loss_index", None) if isinstance(inputs, dict) else None
        if (
            "labels" in inputs
            and not return_outputs
            and self.label_smoother is None
            and self.compute_loss_func is None
        ):
            inputs = {**inputs, "logits_to_keep": "labels", "loss_index": index}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def create_scheduler(self, num_training_steps, optimizer=None):
        """As in `Trainer`."""
        if self.clock is None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer if optimizer is None else optimizer, lambda _: warmup_cosine(self.clock.share)
        )
        return self.lr_scheduler


class SecondsCallback(TrainerCallback, ExportableState):
    """Stops the training after some seconds; `share` says how much of them is spent.

    The clock starts behind the first step, in which kernels are compiled and tuned. A checkpoint keeps what is spent,
    and a training that resumes from it has the rest.
    """

    def __init__(self, seconds: float):
        self.seconds, self.begin, self.spent = seconds, None, 0.0

    @property
    def elapsed(self) -> float:
        """Seconds, those before resuming included."""
        return self.spent + (0.0 if self.begin is None else time.monotonic() - self.begin)

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return min(self.elapsed / self.seconds, 1.0)

    def state(self) -> dict[str, Any]:
        """What Trainer keeps in a checkpoint."""
        return {"args": {"seconds": self.seconds}, "attributes": {"spent": self.elapsed}}

    def on_train_begin(self, args, state, control, **kwargs):
        """Takes over what a checkpoint says."""
        kept = state.stateful_callbacks.get(type(self).__name__)
        if kept is not None and state.global_step:
            self.spent = kept["attributes"]["spent"]

    def on_step_end(self, args, state, control, **kwargs):
        """Starts the clock, then looks at it."""
        if self.begin is None:
            self.begin = time.monotonic()
        control.should_training_stop |= self.share >= 1.0


def warmup_cosine(share: float, warmup: float = 0.05) -> float:
    """Factor of the learning rate after a share of the training: up in a line, then down as a cosine."""
    return min(1.0, share / warmup + 1e-3) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


__all__ = [
    "CachedRows",
    "MaskedPatches",
    "RecordBatches",
    "SamTrainer",
    "check_float32",
    "extract_features",
    "follow_autocast",
    "lora_config",
    "read_openaqa",
    "read_reasonaqa",
    "read_table",
    "save_checkpoint",
    "save_state",
    "upcast_trainable",
    "warmup_cosine",
]
