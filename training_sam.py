"""From rows of (audio, prompt, answer) to training: LoRA, parameter types, features, augmentation."""

import math
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import gather_object
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from audio_sam import SAMPLING_RATE, load_audio
from batches_sam import RecordBatches, compute_features
from modeling_sam import positions_with_loss
from streams_sam import merge_reports
from tabular_sam import clip_key

logger = logging.get_logger(__name__)

LOG_FLOOR = -15.9424  # log of float32's epsilon: Kaldi's log-mel does not go below
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


# ---------------------------------------------------------------------------------------------------------------
# Features
# ---------------------------------------------------------------------------------------------------------------


def extract_features(clips: Sequence[Any], processor, device="cpu", num_threads: int = 8) -> torch.Tensor:
    """Log-mel of many clips, in half precision, to be kept where the training runs.

    Args:
        clips (list): Anything that [`load_audio`] reads; of clips over 10.24 s the beginning is taken.
        processor ([`SamAudioLanguageProcessor`]): Its feature extractor is used.
        device (*optional*, defaults to `"cpu"`): Where the result lives: 256 KiB a clip.
        num_threads (`int`, *optional*, defaults to 8): Threads that read and decode files.

    Returns:
        `torch.Tensor`: `[clips, 1024, 128]`, float16, normalised.
    """
    extractor = processor.feature_extractor
    shape = (len(clips), extractor.max_frames, extractor.feature_size)
    features = torch.empty(shape, dtype=torch.float16, device=device)
    with ThreadPoolExecutor(num_threads) as pool, tqdm(total=len(clips), desc="features", unit="clip") as bar:
        for begin in range(0, len(clips), 64):
            part = clips[begin : begin + 64]
            waveforms = [waveform[: extractor.max_frames * 160 + 240] for waveform in pool.map(load_audio, part)]
            batch = extractor(waveforms, SAMPLING_RATE, return_tensors="pt", overflow="truncate", device=device)
            features[begin : begin + len(part)] = batch["input_features"]
            bar.update(len(part))
    return features


class CachedRows(torch.utils.data.Dataset):
    """Rows whose log-mel was computed once and stays on the training device; rows without audio are text.

    With small data the loader is the bottleneck: this takes reading, decoding and the filter bank out of the loop.
    Give it to Trainer with `dataloader_num_workers=0` and `dataloader_pin_memory=False`.

    Args:
        table (`datasets.Dataset`): Rows `audio`, `prompt`, `answer`, as [`read_table`] gives them.
        processor ([`SamAudioLanguageProcessor`]): The processor.
        device (*optional*, defaults to `"cpu"`): Where the features live.
        num_threads (`int`, *optional*, defaults to 8): Threads that read and decode files.
        text_cutoff (`int`, *optional*): Tokens of template, prompt and answer that are kept, as in [`RecordBatches`];
            a warning counts the rows that are cut.
    """

    def __init__(
        self, table: datasets.Dataset, processor, device="cpu", num_threads: int = 8, text_cutoff: int | None = None
    ):
        clips = table["audio"][:] if len(table) else []
        keys = [clip_key(clip) for clip in clips]
        first = {key: index for index, key in reversed(list(enumerate(keys))) if key is not None}
        place = {key: row for row, key in enumerate(first)}
        self.clip = [place.get(key) for key in keys]  # None: a row of text
        self.features = extract_features([clips[index] for index in first.values()], processor, device, num_threads)
        self.rows = []
        if len(table):
            counts = [int(clip is not None) for clip in self.clip]
            tokens = processor._encode_text(table["prompt"][:], counts, table["answer"][:], False, text_cutoff)
            if num_cut := sum(tokens["is_cut"]):
                logger.warning(
                    f"{num_cut} of {len(table)} rows are longer than {text_cutoff} text tokens and are cut."
                )
            pairs = zip(tokens["input_ids"], tokens["labels"])
            self.rows = [{"input_ids": ids, "labels": labels} for ids, labels in pairs]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip = self.clip[index]
        return self.rows[index] if clip is None else {**self.rows[index], "input_features": self.features[clip]}


# ---------------------------------------------------------------------------------------------------------------
# Augmentation
# ---------------------------------------------------------------------------------------------------------------


class AugmentLogMel:
    """Random changes of log-mel spectrograms that leave what is heard: for training on few clips.

    In this order: the clip is turned round in time and stretched, its frequencies are shifted and scaled, its
    loudness is changed, another clip of the batch is added at a lower level, and stripes in time and frequency are
    erased (SpecAugment). The sum of two clips is taken of their powers, which is what a mixture of independent sounds
    has on average. All of it works on whole batches, on any device, with torch's global random numbers.

    Args:
        mean, std (`float`): The feature extractor's normalisation.
        stretch (`float`, *optional*, defaults to 0.2): A clip becomes up to so much longer or shorter.
        shift (`float`, *optional*, defaults to 4.0): Largest shift in mel bins.
        scale (`float`, *optional*, defaults to 0.05): Largest share by which distances in mel bins grow or shrink.
        gain (`float`, *optional*, defaults to 8.0): Largest change of level, in dB.
        mix (`float`, *optional*, defaults to 0.5): How often another clip is added.
        snr (`tuple[float, float]`, *optional*, defaults to `(3, 25)`): By how many dB it is weaker.
        time_mask (`float`, *optional*, defaults to 0.15): Longest erased stripe, as a share of the clip; two of them.
        frequency_mask (`int`, *optional*, defaults to 20): Widest erased stripe in mel bins; two of them.
        tile (`bool`, *optional*, defaults to `False`): Repeat short clips until the frames are full.
        turn (`bool`, *optional*, defaults to `True`): Turn the clip round in time, to begin anywhere in it. With
            `turn=False` and `mix=0` the order and the number of sounds stay what they were.
    """

    def __init__(
        self,
        mean=-4.268,
        std=4.569,
        stretch=0.2,
        shift=4.0,
        scale=0.05,
        gain=8.0,
        mix=0.5,
        snr=(3.0, 25.0),
        time_mask=0.15,
        frequency_mask=20,
        tile=False,
        turn=True,
    ):
        self.mean, self.std = mean, std
        self.stretch, self.shift, self.scale, self.gain = stretch, shift, scale, gain
        self.mix, self.snr = mix, snr
        self.time_mask, self.frequency_mask = time_mask, frequency_mask
        self.tile, self.turn = tile, turn

    @torch.no_grad()
    def __call__(self, features: torch.Tensor, num_frames: int | None = None) -> torch.Tensor:
        """
        Args:
            features (`torch.Tensor` of shape `[B, frames, bins]`): Normalised log-mel, filled with zeros before the
                normalisation, as [`SamFeatureExtractor`] gives it.
            num_frames (`int`, *optional*): Frames of the result, from anywhere in the clip; all of them by default.

        Returns:
            `torch.Tensor` of shape `[B, num_frames, bins]`, float32.
        """
        x = features.float() * (2 * self.std) + self.mean  # log power
        lengths = self.lengths(x)
        x, lengths = self._move(x, lengths, num_frames or x.shape[1])
        decibel = 0.1 * float(np.log(10.0))
        x = x + self._uniform(x, -self.gain, self.gain) * decibel
        x = x.clamp(min=LOG_FLOOR)
        inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # [B, T]
        if self.mix and len(x) > 1:
            order = torch.roll(torch.arange(len(x), device=x.device), 1)
            level = self._level(x, inside)
            weaker = level - level[order] - self._uniform(x, *self.snr)[:, 0, 0] * decibel
            other = (x[order] + weaker[:, None, None]).masked_fill(~inside[order][:, :, None], -torch.inf)
            chosen = (torch.rand(len(x), device=x.device) < self.mix)[:, None, None]
            x = torch.where(chosen, torch.logaddexp(x, other), x)
        x = self._erase(x, lengths)
        x = x.masked_fill(~inside[:, :, None], 0.0)
        return (x - self.mean) / (2 * self.std)

    @staticmethod
    def lengths(log_mel: torch.Tensor) -> torch.Tensor:
        """Frames of each clip `[B]`: what follows its last frame that is not all zero is filling."""
        real = (log_mel.abs() > 0.02).any(dim=2)  # half precision leaves zeros within 0.003
        frames = torch.arange(1, log_mel.shape[1] + 1, device=log_mel.device)
        return (real * frames).amax(dim=1).clamp(min=1)

    def _uniform(self, x, low, high):
        return low + (high - low) * torch.rand(len(x), 1, 1, device=x.device)

    @staticmethod
    def _level(x, inside):
        """Log of the mean power over the clip, `[B]`."""
        inside = inside[:, :, None]
        total = torch.logsumexp(x.masked_fill(~inside, -torch.inf), dim=(1, 2))
        return total - (inside.sum(dim=(1, 2)) * x.shape[2]).log()

    def _move(self, x, lengths, frames):
        """Rotation and stretching in time, shift and scaling in frequency; the nearest value is taken, since
        interpolation would blur what evaluation sees sharp."""
        batch, _, bins = x.shape
        stretch = 1 + self._uniform(x, -self.stretch, self.stretch)[:, 0]  # [B, 1]
        new_lengths = (lengths * stretch[:, 0]).long().clamp(1, frames)
        if self.tile:
            new_lengths = torch.full_like(new_lengths, frames)
        start = (torch.rand(batch, 1, device=x.device) * lengths[:, None] * self.turn).long()
        time_index = ((torch.arange(frames, device=x.device) / stretch).long() + start) % lengths[:, None]  # [B, T]
        x = x[torch.arange(batch, device=x.device)[:, None], time_index]
        scale = 1 + self._uniform(x, -self.scale, self.scale)
        bin_index = (torch.arange(bins, device=x.device) - self._uniform(x, -self.shift, self.shift)) * scale
        return x.gather(2, bin_index.round().long().clamp(0, bins - 1).expand(-1, frames, -1)), new_lengths

    def _erase(self, x, lengths):
        """Two stripes in time and two in frequency, filled with the clip's mean."""
        batch, _, bins = x.shape
        fill = x.mean(dim=(1, 2), keepdim=True)
        for axis, size, longest in (
            (1, lengths.view(-1, 1, 1), self.time_mask),
            (2, bins, self.frequency_mask / bins),
        ):
            index = torch.arange(x.shape[axis], device=x.device).view((1, -1, 1) if axis == 1 else (1, 1, -1))
            for _ in range(2):
                width = self._uniform(x, 0, longest) * size
                begin = torch.rand(batch, 1, 1, device=x.device) * (size - width)
                x = torch.where((index >= begin) & (index < begin + width), fill, x)
        return x


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
            self.add_callback(BatchesCallback(train_batches))

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


class BatchesCallback(TrainerCallback):
    """Tells [`RecordBatches`] where the training stands, and says at its end what was lost.

    A Trainer that resumes skips as many batches as the epoch has behind it: these are empty, as nothing reads them.
    """

    def __init__(self, batches: RecordBatches):
        self.batches, self.epoch = batches, None

    def on_train_begin(self, args, state, control, **kwargs):
        """Finds the step to begin with: not the first one, where a checkpoint is resumed."""
        self.epoch = state.global_step // self.batches.steps_per_epoch
        self.batches.seek(state.global_step, placeholders=True)
        if args.ignore_data_skip:
            self.batches.set_epoch(self.epoch)

    def on_epoch_end(self, args, state, control, **kwargs):
        """On to the next epoch, wherever this one was left."""
        self.epoch += 1
        self.batches.set_epoch(self.epoch)

    def on_train_end(self, args, state, control, **kwargs):
        """Warns of what was lost, over all processes."""
        lost = merge_reports(gather_object([self.batches.report()]))
        if state.is_world_process_zero and any(row[kind] for row in lost.values() for kind in row if kind != "seen"):
            lines = [f"{name}: {', '.join(f'{row[kind]} {kind}' for kind in row)}" for name, row in lost.items()]
            logger.warning("Records of the training that were not read whole, by source:\n" + "\n".join(lines))


def warmup_cosine(share: float, warmup: float = 0.05) -> float:
    """Factor of the learning rate after a share of the training: up in a line, then down as a cosine."""
    return min(1.0, share / warmup + 1e-3) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


__all__ = [
    "AugmentLogMel",
    "CachedRows",
    "SamTrainer",
    "check_float32",
    "extract_features",
    "follow_autocast",
    "lora_config",
    "save_checkpoint",
    "upcast_trainable",
    "warmup_cosine",
]
