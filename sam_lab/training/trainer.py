"""`SamTrainer`: transformers' Trainer on [`RecordBatches`], for a fixed time if asked, with augmentation."""

import time
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import ProcessorMixin, Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from hub_sam import write_model_card
from modeling_sam import SamForConditionalGeneration, positions_with_loss
from processing_sam import SamDataCollator
from sam_lab.data.batches import RecordBatches
from sam_lab.data.collation import MicroBatch, compute_features
from sam_lab.data.counts import KINDS, SourceCounts, merge_reports
from sam_lab.training.augmentation import AugmentLogMel
from sam_lab.training.model import follow_autocast
from sam_lab.training.optimizers import warmup_cosine

logger = logging.get_logger(__name__)


class BatchesCallback(TrainerCallback):
    """Tells [`RecordBatches`] where the training stands, reports what it has read, and warns at the end of what was
    lost.

    A Trainer that resumes skips as many batches as the epoch has behind it: these are empty, as nothing reads them.
    """

    # Where trainer_state.json keeps what was read. Not as this callback's own state: a Trainer that resumes without
    # the callback would miss it.
    COUNTS = "records_read"

    def __init__(self, batches: RecordBatches):
        self.batches, self.epoch = batches, None
        self.before: dict[str, dict[str, int]] = {}  # read by all processes, up to the checkpoint that is resumed

    def report(self) -> dict[str, dict[str, int]]:
        """What the training has read, by source, as [`~RecordBatches.report`], but over all processes and with what
        came before resuming. All processes call it."""
        return merge_reports([*gather_object([self.batches.report()]), self.before])

    def on_train_begin(self, args, state, control, **kwargs):
        """Finds the step to start with. Where a checkpoint is resumed, it is a later one, and the checkpoint has the
        counts of what was read."""
        self.before = state.stateful_callbacks.get(self.COUNTS, {})
        self.batches.counts.table.clear()
        self.epoch = state.global_step // self.batches.order.steps_per_epoch
        self.batches.seek(state.global_step, placeholders=True)
        if args.ignore_data_skip:
            self.batches.set_epoch(self.epoch)

    def on_epoch_end(self, args, state, control, **kwargs):
        """Moves to the next epoch, wherever this one was left."""
        self.epoch += 1
        self.batches.set_epoch(self.epoch)

    def on_train_end(self, args, state, control, **kwargs):
        """Warns of what was lost, over all processes, and refuses a training that has learned nothing."""
        read = self.report()
        if state.is_world_process_zero and any(row[kind] for row in read.values() for kind in KINDS[1:]):
            lines = [f"{name}: {', '.join(f'{row[kind]} {kind}' for kind in KINDS)}" for name, row in read.items()]
            logger.warning("Records of the training that were not read whole, by source:\n" + "\n".join(lines))
        counts = SourceCounts()
        counts.merge(read)
        counts.check_labels()  # an epoch that was not read to its end was not judged


# -- Trainer ------------------------------------------------------------------------------------------------------


class SamTrainer(Trainer):
    """`Trainer` that trains on [`RecordBatches`], and changes the clips of training batches with [`AugmentLogMel`].

    Args:
        augment ([`AugmentLogMel`], *optional*): What to do with training clips, on the device; nothing by default.
        max_seconds (`float`, *optional*): Train for this time instead of `max_steps` or epochs: the learning rate
            rises for a twentieth of the time and then falls as a cosine. In one process only.
        train_batches ([`RecordBatches`], *optional*): What to train on, instead of `train_dataset`. Its `num_steps` is
            used where `args.max_steps` is not positive, never `args.num_train_epochs`. Nothing shards its batches
            again, `features="device"` is computed on the device, and `train(resume_from_checkpoint=...)` continues
            with the step after the checkpoint's without decoding what came before.
        kwargs: `Trainer`'s.

    Raises:
        ValueError: A processor with more tokens than the model has embeddings; `max_seconds` with several processes,
            which would not stop at the same step; `train_batches` that do not fit `args`, or are passed together with
            `train_dataset`.
            In a training: what [`RecordBatches`] raises.
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
        processors = [self.processing_class, None if train_batches is None else train_batches.processor]
        processors += [self.data_collator.processor] if isinstance(self.data_collator, SamDataCollator) else []
        _check_vocabulary(processors, self.model)
        follow_autocast(self.model)
        self.augment = augment
        self.clock = None
        self.train_batches = train_batches
        self.progress = None if train_batches is None else BatchesCallback(train_batches)
        if max_seconds is not None:
            if self.args.world_size > 1:
                raise ValueError(f"max_seconds: got it with {self.args.world_size} processes, expected one.")
            self.clock = SecondsCallback(max_seconds)
            self.args.max_steps = 1_000_000  # the clock stops it earlier
            self.add_callback(self.clock)
        if train_batches is not None:
            self._check_batches()
            if self.args.max_steps <= 0:
                self.args.max_steps = train_batches.order.num_steps
            train_batches.stop_at(self.args.max_steps)
            self.add_callback(self.progress)

    def _check_batches(self) -> None:
        args, batches = self.args, self.train_batches
        if self.train_dataset is not None:
            raise ValueError("train_batches and train_dataset: got both, expected one of them.")
        if args.n_gpu > 1:
            raise ValueError(
                f"train_batches: got one process with {args.n_gpu} GPUs, expected one process for each; start with "
                "accelerate launch or torchrun, or set CUDA_VISIBLE_DEVICES."
            )
        for name, argument in (
            ("batch_size", "per_device_train_batch_size"),
            ("accumulation", "gradient_accumulation_steps"),
            ("num_processes", "world_size"),
            ("process_index", "process_index"),
        ):
            found, expected = getattr(batches.order, name), getattr(args, argument)
            if found != expected:
                raise ValueError(
                    f"train_batches: its {name} is {found}, expected {expected} as args.{argument}; make both the "
                    "same."
                )
        if batches.start_step:
            raise ValueError(
                f"train_batches: its start_step is {batches.start_step}, expected 0; "
                "train(resume_from_checkpoint=...) "
                "finds the step itself."
            )

    def get_train_dataloader(self):
        """As in `Trainer`, or over `train_batches`, which are sharded already and so bypass accelerate."""
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
            generator=torch.Generator(),  # a separate one: dropout must not depend on when a loader starts
        )

    def _get_num_items_in_batch(self, batch_samples, device):
        """As in `Trainer`, but counted on the device: `Trainer` copies its count there, which waits for the last
        step."""
        on_device = [
            {name: self._without_waiting(batch[name]) for name in ("labels", "shift_labels") if name in batch}
            for batch in batch_samples
        ]
        return super()._get_num_items_in_batch(on_device, device)

    def _without_waiting(self, value):
        """Moves pinned memory to the device without blocking; anything else stays for `Trainer` to move."""
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
        """As in `Trainer`; what was read for the micro-batch is counted and judged."""
        if self.train_batches is not None and isinstance(inputs, MicroBatch):  # a replaced loader may yield others
            self.train_batches.count(inputs)
        return super().training_step(model, inputs, *args, **kwargs)

    def _save_checkpoint(self, model, trial):
        """As in `Trainer`; the checkpoint also has the counts of what all processes have read."""
        if self.progress is not None:
            self.state.stateful_callbacks[BatchesCallback.COUNTS] = self.progress.report()
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


def _check_vocabulary(processors: list[Any], model: torch.nn.Module) -> None:
    """Refuses a tokenizer with more tokens than the model has embeddings: on a GPU the training would end without a
    word on the reason."""
    size = model.config.text_config.vocab_size
    for processor in processors:
        if isinstance(processor, ProcessorMixin) and (top := max(processor.tokenizer.get_vocab().values())) >= size:
            raise ValueError(
                f"processing_class: its tokenizer has ids up to {top}, expected at most {size - 1}, the model's last "
                "embedding; use the processor that was saved with the model."
            )


class SecondsCallback(TrainerCallback, ExportableState):
    """Stops the training after so many seconds.

    The clock starts after the first step, in which kernels are compiled and tuned. A checkpoint keeps the elapsed
    time, and a training that resumes from it has the rest.
    """

    def __init__(self, seconds: float):
        self.seconds, self.begin, self.spent = seconds, None, 0.0

    @property
    def elapsed(self) -> float:
        """Seconds, including those before resuming."""
        return self.spent + (0.0 if self.begin is None else time.monotonic() - self.begin)

    @property
    def share(self) -> float:
        """The share of the time that has elapsed, from 0 to 1."""
        return min(self.elapsed / self.seconds, 1.0)

    def state(self) -> dict[str, Any]:
        """What Trainer saves in a checkpoint."""
        return {"args": {"seconds": self.seconds}, "attributes": {"spent": self.elapsed}}

    def on_train_begin(self, args, state, control, **kwargs):
        """Reads the elapsed time from a checkpoint that is resumed."""
        saved = state.stateful_callbacks.get(type(self).__name__)
        if saved is not None and state.global_step:
            self.spent = saved["attributes"]["spent"]

    def on_step_end(self, args, state, control, **kwargs):
        """Starts the clock after the first step, and stops the training when the time is over."""
        if self.begin is None:
            self.begin = time.monotonic()
        control.should_training_stop |= self.share >= 1.0
