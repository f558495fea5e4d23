"""Greedy answers of a model to questions about clips."""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from audio_sam import FRAME_LENGTH, SAMPLING_RATE


def prompt_inputs(model, processor, prompt: str) -> dict[str, torch.Tensor]:
    """The inputs of a prompt about one clip, without the clip: `input_ids` and `attention_mask`, `[1, L]`, on the
    model's device. They are the same for every clip, since the number of slots does not depend on its length."""
    silence = [0.0] * FRAME_LENGTH
    row = processor(text=[prompt], audio=[silence], sampling_rate=SAMPLING_RATE, return_tensors="pt")
    return {name: row[name].to(model.device) for name in ("input_ids", "attention_mask")}


def answer_windows(
    model,
    processor,
    prompt: dict[str, torch.Tensor],
    features: torch.Tensor,
    max_new_tokens: int | None = None,
    **options: Any,
) -> list[str]:
    """Answers to one prompt about windows, each on one line, by the checkpoint's generation settings.

    Args:
        model ([`SamForConditionalGeneration`]): The model.
        processor ([`SamAudioLanguageProcessor`]): Its processor.
        prompt (`dict`): From [`prompt_inputs`].
        features (`torch.Tensor` of shape `[B, 1024, 128]`): The windows' `input_features`.
        max_new_tokens (`int`, *optional*): Longest answer, by default the checkpoint's.
        options: Of `generate`, such as `do_sample=False`.
    """
    inputs = {name: value.expand(len(features), -1) for name, value in prompt.items()}
    limit = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    tokens = model.generate(**inputs, input_features=features.to(model.device), **limit, **options)
    answers = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [" ".join(answer.split()) for answer in answers]


def generate(model, inputs, processor, max_new_tokens: int) -> list[str]:
    """Greedy answers to processed prompts, without a repetition penalty."""
    tokens = model.generate(**inputs, do_sample=False, repetition_penalty=1.0, max_new_tokens=max_new_tokens)
    texts = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


@torch.inference_mode()
def generate_answers(
    model, processor, clips: Sequence[Any], prompts: Sequence[str], batch_size: int = 32, max_new_tokens: int = 64
) -> list[str]:
    """Greedy answers to questions about clips.

    Args:
        model ([`SamForConditionalGeneration`]): The model; in evaluation mode during the call.
        processor ([`SamAudioLanguageProcessor`]): Its processor.
        clips (list): One clip for each prompt, anything that [`load_audio`] reads; of clips over 10.24 s
            the beginning is used.
        prompts (list of `str`): The questions.
        batch_size (`int`, *optional*, defaults to 32): Questions of a batch.
        max_new_tokens (`int`, *optional*, defaults to 64): Longest answer.

    Returns:
        `list[str]`: The answers, in the order of the questions.

    Raises:
        ValueError: The numbers of clips and prompts differ.
    """
    if len(clips) != len(prompts):
        raise ValueError(f"clips, prompts: got {len(clips)} and {len(prompts)}, expected one clip for each prompt.")
    training = model.training
    model.eval()
    answers = []
    for begin in tqdm(range(0, len(clips), batch_size), desc="answering", unit="batch"):
        audio = [[clip] for clip in clips[begin : begin + batch_size]]
        texts = list(prompts[begin : begin + batch_size])
        inputs = processor(text=texts, audio=audio, overflow="truncate", return_tensors="pt").to(model.device)
        answers += generate(model, inputs, processor, max_new_tokens)
    model.train(training)
    return answers
