"""What is refused before it becomes a fluent answer about something else: waveforms, texts, tensors, batches
without labels."""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor
from transformers.utils import logging

logger = logging.get_logger(__name__)

IGNORE_INDEX = -100
FEWEST_SAMPLES = 400  # of a clip: a frame of 25 ms
UNLABELLED_LIMIT = 100  # batches without a label that are read where nothing tells how many an epoch has
# Normalised log-mel lies between about -1.3, the floor, and 3; before the normalisation its floor is -15.9.
USUAL_FEATURES = 10.0

# -- Waveforms ----------------------------------------------------------------------------------------------------


def check_waveforms(raw_speech: Any) -> None:
    """Refuses what is no waveform or batch of waveforms, by name, before it fails somewhere inside.

    Args:
        raw_speech: The first argument of [`SamFeatureExtractor.__call__`].

    Raises:
        TypeError: A path, a file or its content, a row, or nothing.
        ValueError: Samples by channels.
    """
    clips = raw_speech if isinstance(raw_speech, (list, tuple)) else [raw_speech]
    for clip in clips:
        if isinstance(clip, Real):  # one waveform, as a list of numbers
            return
        if not isinstance(clip, (np.ndarray, torch.Tensor, list, tuple)):
            what = f"an object of type {type(clip).__name__}"
            what = f"the path {repr(clip)[:200]}" if isinstance(clip, (str, os.PathLike)) else what
            raise TypeError(
                f"raw_speech: got {what}, expected a waveform, an array of samples; read files with "
                "load_audio(path), or call the processor, which reads and resamples: "
                "processor(text=..., audio=path)."
            )
    shape = tuple(raw_speech.shape) if isinstance(raw_speech, (np.ndarray, torch.Tensor)) else ()
    if len(shape) not in (0, 1, 2) or (len(shape) == 2 and shape[1] < FEWEST_SAMPLES < shape[0]):
        raise ValueError(
            f"raw_speech: got the shape {shape}, expected mono, [samples] or [clips, samples]; average channels with "
            "load_audio."
        )


def check_samples(samples: torch.Tensor, greatest: float) -> None:
    """Refuses samples that are not finite, or integers passed as floats.

    Args:
        samples (`torch.Tensor` of shape `[T]`): One clip.
        greatest (`float`): The greatest amplitude that may be meant.

    Raises:
        ValueError: NaN, infinity, or a greater amplitude.
    """
    low, high = torch.stack(torch.aminmax(samples)).tolist()  # NaN where a sample is NaN
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("raw_speech: got samples that are not finite (NaN or infinity).")
    if max(-low, high) > greatest:
        raise ValueError(
            f"raw_speech: got samples up to {max(-low, high):.6g}, expected about [-1, 1]; divide 16-bit samples by "
            "32768, or pass them as int16."
        )


# -- Texts --------------------------------------------------------------------------------------------------------


def special_tokens(tokenizer) -> tuple[str, ...]:
    """The texts that a tokenizer reads as special tokens, such as `<|endoftext|>`, wherever they stand.

    Added tokens that are ordinary text, such as GPT-NeoX's runs of spaces, are none, and nor is a single character:
    as a padding token it does no harm, since masks tell pads from text.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): Of the processor.
    """
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    found = dict.fromkeys((tokenizer.eos_token, *tokenizer.all_special_tokens, *added))
    unknown = tokenizer.unk_token  # stands for what a tokenizer can't read, and ends nothing, unless it is another's
    others = (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token)
    return tuple(token for token in found if token and len(token) > 1 and (token != unknown or unknown in others))


def check_texts(name: str, texts: Sequence[str], tokens: Collection[str]) -> None:
    """Refuses texts that hold a special token: it would end the text or stand for a clip, and nobody would see it.

    The one rule: prompts hold `<|audio|>` as the mark of a clip and no other special token, answers hold none. Text
    that is rendered already may hold `<|endoftext|>` behind an earlier answer: its caller leaves that out of `tokens`.

    Args:
        name (`str`): The argument or column.
        texts (list of `str`): The texts.
        tokens (list of `str`): What they may not hold, from [`special_tokens`].

    Raises:
        ValueError: A text that holds one; the message has its position.
    """
    for index, text in enumerate(texts):
        token = next((token for token in tokens if token in text), None)
        if token is not None:
            raise ValueError(
                f"{name}: got the special token {token} in {_around(text, token)!r} at position {index}, expected "
                "text without it: the tokenizer reads it as a mark, not as text; remove it, or write it otherwise."
            )


def _around(text: str, token: str) -> str:
    begin = max(text.index(token) - 30, 0)
    return text[begin : begin + 60 + len(token)]


# -- Tensors ------------------------------------------------------------------------------------------------------


def check_model_inputs(
    input_ids: Any = None, input_features: Any = None, attention_mask: Any = None, labels: Any = None
) -> None:
    """Refuses kinds and shapes that a model would not notice; looks at no value, so that it never waits for a GPU.

    Args:
        input_ids (`torch.Tensor` of shape `[B, L]`, *optional*): Integers.
        input_features (`torch.Tensor` of shape `[clips, 1024, 128]`, *optional*): Floating-point numbers.
        attention_mask (`torch.Tensor` of shape `[B, L]`, *optional*): With a cache also longer.
        labels (`torch.Tensor` of shape `[B, L]`, *optional*): Of the shape of `input_ids`.

    Raises:
        ValueError: Something else than a tensor, or of another kind or shape.
    """
    given = {
        "input_ids": input_ids,
        "input_features": input_features,
        "attention_mask": attention_mask,
        "labels": labels,
    }
    for name, value in given.items():
        if value is not None and not isinstance(value, torch.Tensor):
            what = "the processor's whole result" if isinstance(value, Mapping) else f"{type(value).__name__}"
            raise ValueError(
                f"{name}: got {what}, expected a tensor; call the processor with return_tensors='pt' and pass its "
                "result by name, as in model.generate(**inputs) or model(**inputs)."
            )
    is_integer = input_ids is None or not (input_ids.is_floating_point() or input_ids.dtype == torch.bool)
    if input_ids is not None and (input_ids.ndim != 2 or not is_integer):
        advice = "" if is_integer else "pass features and masks by name, input_features=..., with input_ids"
        raise ValueError(
            f"input_ids: got {_kind(input_ids)}, expected integers of shape [B, L]; "
            f"{advice or 'add the axis of the batch'}, best as model.generate(**inputs) or model(**inputs) with the "
            "processor's result."
        )
    if input_features is not None and not input_features.is_floating_point():
        raise ValueError(
            f"input_features: got {_kind(input_features)}, expected floating-point log-mel from the processor."
        )
    if labels is not None and input_ids is not None and labels.shape != input_ids.shape:
        raise ValueError(
            f"labels: got the shape {list(labels.shape)}, expected that of input_ids, {list(input_ids.shape)}: the "
            "label of each token at its own place, -100 where nothing is learned."
        )


def _kind(value: torch.Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} of shape {list(value.shape)}"


def check_generation_inputs(vocab_size: int, inputs: Any, options: Mapping[str, Any]) -> None:
    """Checks once what `generate` or `score_candidates` was given, also the values: waits for the device once.

    Args:
        vocab_size (`int`): Entries of the model's vocabulary.
        inputs: The first argument of `generate` by position: ids, or `None`.
        options (`dict`): Its other arguments by name.

    Raises:
        ValueError: Arguments of another kind or shape, ids outside the vocabulary, features that are not finite, a row
            without any real position, answers, or attentions, which the model does not have.
    """
    if inputs is not None and not (isinstance(inputs, torch.Tensor) and not inputs.is_floating_point()):
        what = _kind(inputs) if isinstance(inputs, torch.Tensor) else type(inputs).__name__
        raise ValueError(
            f"inputs: got {what} as the first argument, expected input_ids; pass all by name, as in "
            "model.generate(**processor(text=..., audio=..., return_tensors='pt'))."
        )
    if options.get("labels") is not None:
        raise ValueError(
            "labels: got labels, expected a prompt alone: the answer would stand in it; call the processor without "
            "`answer`."
        )
    if options.get("output_attentions"):
        raise ValueError("output_attentions: got True, but a Mamba-2 model has no attentions; leave it out.")
    ids = options.get("input_ids") if inputs is None else inputs
    features, mask = options.get("input_features"), options.get("attention_mask")
    check_model_inputs(ids, features, mask)
    has_cache = any(options.get(name) is not None for name in ("cache", "past_key_values", "inputs_embeds"))
    if ids is not None and not ids.numel() and not has_cache:
        raise ValueError(f"input_ids: got the shape {list(ids.shape)}, expected a prompt; make it with SamProcessor.")
    if ids is not None and mask is not None and not has_cache and mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask: got the shape {list(mask.shape)}, expected that of input_ids, {list(ids.shape)}; pass "
            "both as the processor returns them."
        )
    if torch.compiler.is_compiling():
        return
    facts: dict[str, torch.Tensor] = {}
    if ids is not None and ids.numel():
        facts.update(zip(("least", "most"), torch.aminmax(ids)))
    if mask is not None and mask.numel():
        facts["real"] = mask.bool().any(dim=-1).all()
    if features is not None and features.numel():
        facts.update(zip(("low", "high"), torch.aminmax(features)))
    if not facts:
        return
    device = next(iter(facts.values())).device
    values = torch.stack([value.detach().to(device, torch.float32) for value in facts.values()]).tolist()
    found = dict(zip(facts, values))  # in one copy
    if ids is not None and (found.get("least", 0) < 0 or found.get("most", 0) >= vocab_size):
        raise ValueError(
            f"input_ids: got ids from {int(ids.min())} to {int(ids.max())}, expected from 0 to {vocab_size - 1}, the "
            "model's vocabulary; use the processor that was saved with the model."
        )
    if mask is not None and not found.get("real", True):
        rows = (~mask.bool().any(dim=-1)).nonzero().flatten().tolist()
        raise ValueError(f"attention_mask: got no real position in the rows {rows}, expected a prompt in each.")
    if features is not None and "low" in found:
        check_features(features, found["low"], found["high"])


class FiniteLogits(LogitsProcessor):
    """Refuses logits that are NaN in the first step of `generate`: the answer would be empty or noise.

    Waits for the device once, as `generate` does in each step.
    """

    def __init__(self):
        self.is_checked = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self.is_checked and not torch.compiler.is_compiling():
            check_scores("logits", scores.amax(dim=-1))
            self.is_checked = True
        return scores


def check_scores(name: str, scores: torch.Tensor) -> None:
    """Refuses scores that are NaN, which comes from weights that are, or from a number that float16 does not hold.

    Args:
        name (`str`): What they are.
        scores (`torch.Tensor` of shape `[B, ...]`): One row for each prompt.

    Raises:
        ValueError: NaN; the message has the rows.
    """
    rows = scores.isnan().flatten(1).any(dim=1) if scores.ndim > 1 else scores.isnan()
    if bool(rows.any()):
        raise ValueError(
            f"{name}: got NaN in the rows {rows.nonzero().flatten().tolist()} though all features are finite, so the "
            "model's weights are not, or numbers exceed its type; use bfloat16 or float32 instead of float16, or "
            "another checkpoint."
        )


def check_slots(by_row: torch.Tensor, clips: int, a_clip: int, arrived=None) -> None:
    """Refuses slots in the ids that are not those of the clips.

    Args:
        by_row (`torch.Tensor` of shape `[B]`): Audio slots of each row.
        clips (`int`): Number of clips.
        a_clip (`int`): Slots of a clip.
        arrived (`torch.cuda.Event`, *optional*): After which `by_row` has arrived from the GPU.

    Raises:
        ValueError: The numbers differ, or a row has a part of a clip's slots.
    """
    if arrived is not None:
        arrived.synchronize()
    if int(by_row.sum()) != clips * a_clip or bool((by_row % a_clip).any()):
        raise ValueError(
            f"input_ids and input_features: the rows of input_ids hold {by_row.tolist()} audio slots, "
            f"{clips} clip(s) need {a_clip} each; make both with one call of SamProcessor."
        )


def check_features(features: torch.Tensor, low: float, high: float, where: str = "") -> None:
    """Refuses features that are not finite, and warns of values that [`SamFeatureExtractor`] does not return.

    Args:
        features (`torch.Tensor` of shape `[clips, 1024, 128]`): The features.
        low, high (`float`): Their least and greatest value; NaN where one is NaN.
        where (`str`, *optional*): Begins the message: the row.

    Raises:
        ValueError: NaN or infinity.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        clips = (~features.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
        raise ValueError(
            f"input_features: {where}clip {clips[0]} of {len(features)}, counted from 0, has values that are not "
            "finite (NaN or infinity); compute them again from the audio, in float32."
        )
    if low == high == 0 or max(-low, high) > USUAL_FEATURES:
        logger.warning(
            f"input_features: {where}values from {low:.4g} to {high:.4g}, which are not those of the processor's "
            "feature extractor (normalised, about -1.3 to 3): the model may answer about something else."
        )


# -- Batches without labels ---------------------------------------------------------------------------------------


class LabelWatch:
    """Notices that nothing is learned: warns at the first batch without a label, and raises when a whole epoch had
    none.

    It counts for each loader. Workers share the counts; each has its own row, so that no lock is needed.
    """

    ROWS = 4096

    def __init__(self):
        # By loader and worker: the loader's seed, its batches with a label, its batches and its rows without.
        self.counts = torch.zeros((self.ROWS, 4), dtype=torch.int64).share_memory_()

    def __call__(self, labels: Sequence[Sequence[int]]) -> None:
        """
        Args:
            labels (list of lists of `int`): A batch. A row's first label has nothing before it, and is never learned.

        Raises:
            ValueError: This is the last batch of an epoch without any label, or, where the length of an epoch is not
                known, the hundredth such batch and none had a label. Each of several processes sees its part of an
                epoch: one of less than 100 batches counts together with the next epochs.
        """
        worker = torch.utils.data.get_worker_info()
        loader = _active_loader()
        key, index, count = (
            (id(loader), 0, 1) if worker is None else (worker.seed - worker.id, worker.id, worker.num_workers)
        )
        own = self._row(key, index)
        if int(own[0]) != key:  # an earlier loader's
            own.copy_(torch.tensor([key, 0, 0, 0]))
        if any(label != IGNORE_INDEX for row in labels for label in row[1:]):
            own[1] += 1
            return
        own[2] += 1
        own[3] += len(labels)
        rows = [row for number in range(count) if int((row := self._row(key, number))[0]) == key]
        labelled, batches, samples = torch.stack(rows)[:, 1:].sum(dim=0).tolist()
        if batches == 1:
            logger.warning(
                f"labels: a batch of {len(labels)} rows has only {IGNORE_INDEX}, so that nothing is learned from it; "
                "check how the labels are made."
            )
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if labelled:
            return
        extent = "all"  # of an epoch
        if (length := _length(loader)) is not None:
            # another process's part of the epoch may have labels, but not where this one's is large
            is_over = batches >= min(length * processes, max(length, UNLABELLED_LIMIT))
        elif worker is not None and (length := _length(worker.dataset)) is not None:
            is_over = samples >= length
        else:
            is_over, extent = batches >= UNLABELLED_LIMIT, "the first"
        if is_over:
            raise ValueError(
                f"labels: got only {IGNORE_INDEX} in {extent} {batches} batches ({samples} rows), expected tokens to "
                "learn, or to evaluate on: the answer and the end of text, as the processor makes them from `answer`; "
                "for predictions alone, leave the labels out."
            )

    def _row(self, key: int, worker: int) -> torch.Tensor:
        return self.counts[(key + 7919 * worker) % self.ROWS]


def _active_loader() -> Any:
    """The `DataLoader` that accelerate reads from, as Trainer does, or `None`."""
    try:
        from accelerate.state import GradientState
    except ImportError:
        return None
    return GradientState().active_dataloader


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except TypeError:  # an iterable
        return None
