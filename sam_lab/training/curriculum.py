"""Runs a recipe: its stages in order, resumable at any point."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from transformers import TrainerCallback
from transformers.utils import is_flash_attn_2_available

from modeling_sam import SamAudioModel
from processing_sam import SamProcessor
from sam_lab.common.files import locked
from sam_lab.common.processes import processes
from sam_lab.training.model import encoder_folder, model_config
from sam_lab.training.plan import accumulation
from sam_lab.training.recipe import Recipe, Stage, claim
from sam_lab.training.sources import claim_inputs, prepare_data, validation_rows
from sam_lab.training.stages import (
    DRAWN,
    _has_tensorboard,
    _say,
    _tidy,
    is_finished,
    run_stage,
    stage_folder,
    stage_steps,
)

LOCK_SECONDS = 15  # a killed run's loader workers end that much later, at most


def check_machine(recipe: Recipe, num_processes: int) -> None:
    """What can be known to be wrong before anything is loaded.

    Raises:
        FileNotFoundError: Model or encoder are not there.
        ValueError: The model is another one than the recipe says, a global batch does not divide, or the encoder's
            attention is not installed.
    """
    for stage in recipe.stages:
        accumulation(stage, num_processes)
        if stage.max_seconds is not None and num_processes > 1:
            raise ValueError(
                f"stages.{stage.number}.max_seconds: got it with {num_processes} processes, expected one."
            )
    if recipe.cache_features and num_processes > 1:
        raise ValueError(
            f"cache_features: got true with {num_processes} processes, expected one: rows that do not divide among "
            "them would come twice. Set it to false."
        )
    if recipe.encoder_attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError(
            "encoder_attention: 'flash_attention_2' needs a CUDA GPU and the package flash-attn, which cannot be used "
            "here; install it, or take torch's own attention with --set encoder_attention=sdpa."
        )
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", recipe.precision):
        raise ValueError(
            f"precision: the recipe says {recipe.precision}, accelerate was launched with {launched}; expected the same, "
            "or `accelerate launch --mixed_precision no`."
        )
    config = model_config(recipe)
    if recipe.encoder_from is not None:
        ours, theirs = config.audio_config, SamAudioModel.config_class.from_pretrained(encoder_folder(recipe))
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size"):
            if getattr(ours, name) != getattr(theirs, name):
                raise ValueError(
                    f"encoder_from: {recipe.encoder_from} has {name} {getattr(theirs, name)}, the model "
                    f"{getattr(ours, name)}; expected the same."
                )


def run_recipe(
    recipe: Recipe, output: str | Path, stage: int | None = None, callbacks: Sequence[TrainerCallback] = ()
) -> Path:
    """Runs a recipe's stages in order; what is finished is passed over, what was begun goes on.

    Killed at any point and called again with the same recipe and output, it computes the same losses as an unbroken
    run (with `max_seconds`: it trains for the seconds that are left).

    Args:
        recipe ([`Recipe`]): The recipe.
        output (`str` or `Path`): Folder for everything; see the head of this file.
        stage (`int`, *optional*): Run this stage only; the one before must be finished.
        callbacks (list of `TrainerCallback`, *optional*): Given to every stage's Trainer.

    Returns:
        The folder of the last stage that was asked for.

    Raises:
        FileNotFoundError, ValueError: Something is missing or does not fit; before anything is trained.
    """
    todo = recipe.chosen(stage)
    output = Path(output).expanduser().resolve()
    state = processes()
    check_machine(recipe, state.num_processes)
    previous = recipe.previous(todo[0])
    if previous is not None and not is_finished(output, previous):
        raise ValueError(
            f"stage: {todo[0].number} begins with stage {previous.number}, which is not finished in {output}."
        )
    claim(recipe, output, write=False)
    with _alone(output):
        _run(recipe, output, todo, callbacks)
    return stage_folder(output, todo[-1])


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Keeps a second run out of an output folder: each would take the other's unfinished files for its own."""
    if not processes().is_main_process:
        yield
        return
    output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(output, LOCK_SECONDS))
        except TimeoutError as error:
            raise ValueError(
                f"output: another run is writing into {output}; wait for it or choose another."
            ) from error
        yield


def _run(recipe: Recipe, output: Path, todo: Sequence[Stage], callbacks: Sequence[TrainerCallback]) -> None:
    state = processes()
    left = [each for each in todo if not is_finished(output, each)]
    names = dict.fromkeys(name for each in left for name in each.data)
    if recipe.validation is not None and left:
        names[recipe.validation] = None
    sources = prepare_data(recipe, output, list(names))
    processor = SamProcessor.from_pretrained(recipe.model)
    for each in left:  # what is wrong with the last stage is not found out after the others
        stage_steps(recipe, each, sources, processor)
    drawn = validation_rows(recipe, sources[recipe.validation]) if recipe.validation is not None and left else None
    if state.is_main_process:
        claim(recipe, output)
        if left:
            claim_inputs(recipe, output, sources)  # reads all weights
    state.wait_for_everyone()
    sources[DRAWN] = drawn
    if left and not _has_tensorboard():
        _say("no TensorBoard curves: the package tensorboard is not installed")
    for each in todo:
        if each not in left:
            _say(f"stage {each.number}, {each.name}: finished")
            if state.is_main_process:
                _tidy(recipe, stage_folder(output, each))
            continue
        _say(f"stage {each.number}, {each.name}:")
        run_stage(recipe, each, output, sources, callbacks)
