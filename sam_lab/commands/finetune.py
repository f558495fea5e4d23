"""`sam-alm finetune`: trains a checkpoint on clips and texts of its user."""

import argparse

import datasets
import torch
from huggingface_hub import HfApi
from transformers import AutoProcessor, HfArgumentParser, TrainingArguments, set_seed
from transformers.trainer_utils import HubStrategy

from modeling_sam import SamForConditionalGeneration
from processing_sam import SamDataCollator
from sam_lab.common.answers import generate_answers
from sam_lab.common.checks import check_model
from sam_lab.common.cores import num_cores
from sam_lab.common.processes import end_processes
from sam_lab.data.plain_tables import read_table
from sam_lab.training.augmentation import AugmentLogMel
from sam_lab.training.features import CachedRows
from sam_lab.training.finetuning import ADAPTER_FILES, prepare_model, save_merged, split_rows
from sam_lab.training.model import check_float32
from sam_lab.training.sources import present_rows
from sam_lab.training.trainer import SamTrainer


def run(arguments: argparse.Namespace) -> int:
    """Trains, saves, evaluates, and prints generated answers."""
    parser = HfArgumentParser(TrainingArguments, prog="sam-alm finetune", allow_abbrev=False)
    (training,) = parser.parse_args_into_dataclasses(arguments.training, look_for_args_file=False)
    trainer, truths = _set_up(arguments, training)
    processor = trainer.processing_class
    result = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    check_float32(trainer.model, trainer.optimizer)
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    # merges in place, so that the trainer evaluates what is saved
    model = save_merged(trainer.model, processor, training.output_dir, trainer.is_world_process_zero())
    if len(truths):
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    end_processes()  # now: the first one continues alone, for longer than the others would wait
    if not trainer.is_world_process_zero():
        return 0

    if training.push_to_hub:
        _push(model, trainer)
    shown = truths.select(range(min(arguments.num_examples, len(truths))))
    with torch.autocast(training.device.type, torch.bfloat16, enabled=training.bf16):
        answers = generate_answers(model, processor, shown["audio"][:], shown["prompt"][:])
    for row, answer in zip(shown, answers):
        print(f"\nprompt  {row['prompt']}\ntruth   {row['answer']}\nanswer  {answer}")
    return 0


def _set_up(arguments: argparse.Namespace, training: TrainingArguments) -> tuple[SamTrainer, datasets.Dataset]:
    """The trainer, and the rows to validate on."""
    training.remove_unused_columns = False  # the collator reads the audio
    if training.ddp_find_unused_parameters is None:
        training.ddp_find_unused_parameters = False  # every trainable parameter takes part in every step
    if training.ddp_broadcast_buffers is None:
        training.ddp_broadcast_buffers = False  # constants
    if arguments.recompute:  # transformers 5.23 has renamed it
        training.gradient_checkpointing = training.activation_checkpointing = True
        training.gradient_checkpointing_kwargs = training.activation_checkpointing_kwargs = {"use_reentrant": False}
    if arguments.lora_rank:
        training.hub_strategy = HubStrategy.END  # AutoModel would load an adapter on top of the merged weights

    check_model(arguments.model)
    table, truths = _read_rows(arguments, training)
    processor = AutoProcessor.from_pretrained(arguments.model)
    processor.feature_extractor.incomplete = arguments.incomplete
    set_seed(training.seed)  # adapters start at random
    model = prepare_model(
        SamForConditionalGeneration.from_pretrained(arguments.model, dtype="auto"),
        arguments.lora_rank,
        arguments.lora_dropout,
        encoder=not arguments.freeze_encoder,
        connector=not arguments.freeze_connector,
        language_model=arguments.train_language_model,
    )
    if training.process_index == 0:
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in model.parameters())
        print(f"training {trained / 1e6:.2f} of {total / 1e6:.2f} million parameters")
    rows, validation_rows = table, truths
    if arguments.cache_features:
        threads = num_cores()
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
        augment=AugmentLogMel(extractor.mean, extractor.std) if arguments.augment else None,
        max_seconds=arguments.max_seconds,
    )
    return trainer, truths


def _read_rows(
    arguments: argparse.Namespace, training: TrainingArguments
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Rows to train on and rows to validate on, which may be none."""

    def read(option: str, source: str, split: str) -> datasets.Dataset:
        return present_rows(read_table(source, split, arguments.prompt), option, arguments.max_missing)

    table = read("--train", arguments.train, "train")
    if arguments.validation is not None:
        return table, read("--validation", arguments.validation, "validation")
    return split_rows(table, arguments.validation_share, training.seed)


def _push(model: SamForConditionalGeneration, trainer: SamTrainer) -> None:
    """Pushes the result, and deletes an adapter of an earlier push from the repository."""
    name, options = trainer.hub_model_id, {"revision": trainer.args.hub_revision, "token": trainer.args.hub_token}
    for part in (model, trainer.processing_class):
        part.push_to_hub(name, **options)
    outdated = [file for file in HfApi().list_repo_files(name, **options) if file in ADAPTER_FILES]
    if outdated:
        HfApi().delete_files(
            name, outdated, commit_message="Delete the adapter: the weights have it merged", **options
        )
