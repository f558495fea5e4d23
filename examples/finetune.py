"""Finetunes a SAM checkpoint on your own clips and texts (after `pip install .`).

    python examples/finetune.py --model examples/sam-tiny --train clips.csv --output_dir runs/mine \
        --learning_rate 1e-3 --num_train_epochs 10 --bf16

`--train` is a CSV or JSON file with the columns audio, answer and, if you like, prompt; a folder of audio files with
a `metadata.csv`, or with a subfolder for each class; or the name of a dataset on the Hub. By default the connector and
the encoder are trained whole and the language model rests; `--lora_rank 8` adds adapters to it (paper, section 3.1),
`--train_language_model` trains it whole. What is trained is trained in float32, under bf16 autocast with `--bf16`.
The other arguments are those of transformers' `TrainingArguments`, such as `--resume_from_checkpoint DIR` and
`--push_to_hub`; with adapters nothing is pushed before the end, when they are merged. On several GPUs:

    accelerate launch examples/finetune.py ...

The result, the adapters merged, is in `--output_dir` and loads by itself.
"""

import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import HfApi
from peft import get_peft_model
from transformers import AutoProcessor, HfArgumentParser, TrainingArguments, set_seed
from transformers.trainer_utils import HubStrategy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout works without installing it
from configuration_sam import SamConfig
from modeling_sam import SamForConditionalGeneration
from processing_sam import SamDataCollator
from sam_lab.common.answers import generate_answers
from sam_lab.common.processes import end_processes
from sam_lab.common.prompts import DEFAULT_PROMPT
from sam_lab.data.plain_tables import read_table, rows_with_audio
from sam_lab.training.augmentation import AugmentLogMel
from sam_lab.training.features import CachedRows
from sam_lab.training.model import check_float32, lora_config, upcast_trainable
from sam_lab.training.trainer import SamTrainer

ADAPTER_FILES = ("adapter_config.json", "adapter_model.bin", "adapter_model.safetensors")


@dataclass
class Arguments:
    model: str = field(metadata={"help": "a SAM checkpoint: a directory or a Hub id"})
    train: str = field(metadata={"help": "a CSV or JSON file, an audio folder, or a dataset's name"})
    validation: str | None = field(default=None, metadata={"help": "the same for the validation split"})
    validation_share: float = field(
        default=0.05, metadata={"help": "without --validation, taken from --train; 0: none"}
    )
    max_missing: float = field(default=0.0, metadata={"help": "share of rows to leave out where audio is missing"})
    prompt: str = field(default=DEFAULT_PROMPT, metadata={"help": "where the rows have none"})
    lora_rank: int = field(default=0, metadata={"help": "rank of adapters on the language model; 0: none"})
    lora_dropout: float = field(default=0.05, metadata={"help": "share of the adapters' inputs dropped in training"})
    train_language_model: bool = field(default=False, metadata={"help": "train the language model whole"})
    freeze_connector: bool = field(default=False, metadata={"help": "leave the connector as it is"})
    freeze_encoder: bool = field(default=False, metadata={"help": "leave the audio encoder as it is"})
    recompute: bool = field(default=False, metadata={"help": "save memory: gradient (activation) checkpointing"})
    cache_features: bool = field(default=False, metadata={"help": "compute log-mel once and keep it on the device"})
    augment: bool = field(default=False, metadata={"help": "change the training clips at random: for few clips"})
    max_seconds: float | None = field(default=None, metadata={"help": "train for so long, instead of steps or epochs"})
    num_examples: int = field(default=5, metadata={"help": "generated answers shown at the end"})


def prepare(model, args: Arguments):
    """Freezes what is not trained, adds the adapters, makes what is trained float32."""
    parts = {"audio_tower": not args.freeze_encoder, "connector": not args.freeze_connector}
    if args.lora_rank:
        if args.train_language_model:
            raise ValueError("--lora_rank and --train_language_model: got both, expected one of them.")
        whole = [name for name, trained in parts.items() if trained]
        model = get_peft_model(model, lora_config(args.lora_rank, whole, args.lora_dropout))
    else:
        for name, trained in {**parts, "language_model": args.train_language_model}.items():
            getattr(model.model, name).requires_grad_(trained)
    count = upcast_trainable(model)
    print(f"training {count / 1e6:.2f} of {sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters")
    return model


def read_rows(args: Arguments, training: TrainingArguments):
    """Rows to train on and rows to validate on, which may be none."""

    def read(option: str, source: str, split: str):
        table = read_table(source, split, args.prompt)
        there = rows_with_audio(table, option, args.max_missing)
        if training.process_index == 0:
            print(f"{option}: the audio of {len(there):,} of {len(table):,} rows is there")
        return there

    table = read("--train", args.train, "train")
    if args.validation is not None:
        return table, read("--validation", args.validation, "validation")
    num_validation = math.ceil(args.validation_share * len(table))
    if not 0 <= args.validation_share < 1 or num_validation == len(table):
        raise ValueError(
            f"--validation_share: {args.validation_share:g} of {len(table)} rows is {num_validation}, expected to keep "
            "rows to train on; give another share from 0, no validation, to 1, or a table as --validation."
        )
    if num_validation == 0:
        return table, table.select([])
    splits = table.train_test_split(num_validation, seed=training.seed)
    return splits["train"], splits["test"]


def set_up(args: Arguments, training: TrainingArguments):
    """The trainer, and the rows to validate on."""
    training.remove_unused_columns = False  # the collator reads the audio
    if training.ddp_find_unused_parameters is None:
        training.ddp_find_unused_parameters = False  # every trainable parameter takes part in every step
    if training.ddp_broadcast_buffers is None:
        training.ddp_broadcast_buffers = False  # constants
    if args.recompute:  # transformers 5.23 has renamed it
        training.gradient_checkpointing = training.activation_checkpointing = True
        training.gradient_checkpointing_kwargs = training.activation_checkpointing_kwargs = {"use_reentrant": False}
    if args.lora_rank:
        training.hub_strategy = HubStrategy.END  # AutoModel would put an adapter beside the merged weights on top

    try:
        SamConfig.from_pretrained(args.model)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"--model: got {args.model!r}, expected a SAM checkpoint: {reason}") from None
    table, truths = read_rows(args, training)
    processor = AutoProcessor.from_pretrained(args.model)
    set_seed(training.seed)  # the adapters begin at random
    model = prepare(SamForConditionalGeneration.from_pretrained(args.model, dtype="auto"), args)
    rows, validation_rows = table, truths
    if args.cache_features:
        threads = os.cpu_count() or 1
        rows, validation_rows = (CachedRows(part, processor, training.device, threads) for part in (table, truths))
        training.dataloader_num_workers, training.dataloader_pin_memory = 0, False
    extractor = processor.feature_extractor
    trainer = SamTrainer(
        model=model,
        args=training,
        train_dataset=rows,
        eval_dataset=validation_rows if len(truths) else None,
        data_collator=SamDataCollator(processor),
        processing_class=processor,
        augment=AugmentLogMel(extractor.mean, extractor.std) if args.augment else None,
        max_seconds=args.max_seconds,
    )
    return trainer, truths


def push(model, trainer) -> None:
    """Pushes the result, and deletes what an adapter pushed earlier has left in the repository."""
    name, options = trainer.hub_model_id, {"revision": trainer.args.hub_revision, "token": trainer.args.hub_token}
    for part in (model, trainer.processing_class):
        part.push_to_hub(name, **options)
    left = [file for file in HfApi().list_repo_files(name, **options) if file in ADAPTER_FILES]
    if left:
        HfApi().delete_files(name, left, commit_message="Delete the adapter: the weights have it merged", **options)


def main() -> None:
    args, training = HfArgumentParser((Arguments, TrainingArguments)).parse_args_into_dataclasses()
    try:
        trainer, truths = set_up(args, training)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    model, processor = trainer.model, trainer.processing_class
    result = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    check_float32(model, trainer.optimizer)
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    if args.lora_rank:
        model = model.merge_and_unload()  # in place, so that the trainer evaluates what is saved
    if trainer.is_world_process_zero():
        for name in ADAPTER_FILES:
            Path(training.output_dir, name).unlink(missing_ok=True)  # an earlier run's
        model.save_pretrained(training.output_dir)
        processor.save_pretrained(training.output_dir)
    if len(truths):
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    end_processes()  # before the first one goes on alone, for longer than the others would wait
    if not trainer.is_world_process_zero():
        return

    if training.push_to_hub:
        push(model, trainer)
    shown = truths.select(range(min(args.num_examples, len(truths))))
    with torch.autocast(training.device.type, torch.bfloat16, enabled=training.bf16):
        answers = generate_answers(model, processor, shown["audio"][:], shown["prompt"][:])
    for row, answer in zip(shown, answers):
        print(f"\nprompt  {row['prompt']}\ntruth   {row['answer']}\nanswer  {answer}")


if __name__ == "__main__":
    main()
