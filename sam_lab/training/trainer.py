"""`SamTrainer`: transformers' Trainer on [`RecordBatches`], by the clock if asked, with augmentation."""

import math
import time
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from hub_sam import write_model_card
from modeling_sam import SamForConditionalGeneration, positions_with_loss
from sam_lab.data.batches import RecordBatches, compute_features, logger
from sam_lab.data.counts import SourceCounts, merge_reports
from sam_lab.training.augmentation import AugmentLogMel
from sam_lab.training.model import follow_autocast

# Where trainer_state.json keeps what was read: beside the callbacks' states, for a Trainer that resumes a checkpoint
# without it would miss one of these.
COUNTS = "records_read"


class BatchesCallback(TrainerCallback):
    """Tells [`RecordBatches`] where the training stands, counts what was trained on, and says at the end what was lost.

    A Trainer that resumes skips as many batches as the epoch has behind it: these are empty, as nothing reads them.
    """

    def __init__(self, batches: RecordBatches):
        self.batches, self.epoch = batches, None
        self.kept: dict[str, dict[str, int]] = {}  # of all processes, up to the checkpoint that is resumed
        self.read: dict[str, dict[str, int]] = {}  # of this process, since then

    def count(self, read: dict[str, dict[str, int]]) -> None:
        """Adds what was read for a micro-batch."""
        self.read = merge_reports([self.read, read])

    def report(self) -> dict[str, dict[str, int]]:
        """What the training has read, by source, as [`~RecordBatches.report`], but over all processes, with what came
        before resuming and without what workers have read ahead. All processes call it."""
        return merge_reports([*gather_object([self.read]), self.kept])

    def on_train_begin(self, args, state, control, **kwargs):
        """Finds the step to begin with: not the first one, where a checkpoint is resumed, which says what was read."""
        self.kept, self.read = state.stateful_callbacks.get(COUNTS, {}), {}
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
        lost, kinds = self.report(), SourceCounts.KINDS
        if state.is_world_process_zero and any(row[kind] for row in lost.values() for kind in kinds if kind != "seen"):
            lines = [f"{name}: {', '.join(f'{row[kind]} {kind}' for kind in kinds)}" for name, row in lost.items()]
            logger.warning("Records of the training that were not read whole, by source:\n" + "\n".join(lines))


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
            positions = positions_with_loss(labels)
            inputs["loss_positions"] = positions.pin_memory() if device.type == "cuda" else positions
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
        positions = inputs.pop("loss_positions", None) if isinstance(inputs, dict) else None
        if (
            "labels" in inputs
            and not return_outputs
            and self.label_smoother is None
            and self.compute_loss_func is None
            and self.args.n_gpu <= 1  # torch.nn.DataParallel would split the positions like rows
        ):
            if positions is None:
                positions = positions_with_loss(inputs["labels"])
            inputs = {**inputs, "loss_positions": positions}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def create_model_card(self, *args, **kwargs):
        """Our card with the repository's name instead of the folder's; as in `Trainer` for an adapter."""
        model = self.accelerator.unwrap_model(self.model)
        if type(model).__name__ != SamForConditionalGeneration.__name__:  # by name: a checkpoint has its own copy
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            write_model_card(model.config, self.args.output_dir, name=self.hub_model_id)

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
