"""Audio and text to the inputs of SAM: prompt, audio slots, labels.

[`SamAudioLanguageProcessor`] (alias `SamProcessor`) combines audio with text; [`SamDataCollator`] makes training
batches.
"""

import math
import os
import re
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, compress
from numbers import Real
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from transformers import AutoFeatureExtractor, AutoProcessor, BatchFeature, ProcessorMixin
from transformers.utils import logging

try:
    from .audio_sam import OVERFLOWS, SAMPLING_RATE, SamFeatureExtractor, as_tensors, check_choice, load_audio
except ImportError:
    if __package__:
        raise
    from audio_sam import OVERFLOWS, SAMPLING_RATE, SamFeatureExtractor, as_tensors, check_choice, load_audio
try:
    from .checks_sam import IGNORE_INDEX, check_texts, special_tokens
except ImportError:
    if __package__:
        raise
    from checks_sam import IGNORE_INDEX, check_texts, special_tokens
try:
    from .collator_sam import SamDataCollator
except ImportError:
    if __package__:
        raise
    from collator_sam import SamDataCollator  # noqa: F401
try:
    from .chat_sam import AUDIO_TOKEN, CHAT_TEMPLATE, PROMPT_TEMPLATE, is_rendered, read_chat
except ImportError:
    if __package__:
        raise
    from chat_sam import AUDIO_TOKEN, CHAT_TEMPLATE, PROMPT_TEMPLATE, is_rendered, read_chat
try:
    from .configuration_sam import AUTO_MAP, SamConfig, audio_slot_pattern
except ImportError:
    if __package__:
        raise
    from configuration_sam import AUTO_MAP, SamConfig, audio_slot_pattern
try:
    from .hub_sam import copy_checkpoint_modules, push_folder_to_hub
except ImportError:
    if __package__:
        raise
    from hub_sam import copy_checkpoint_modules, push_folder_to_hub

logger = logging.get_logger(__name__)

SEPARATOR_TOKEN = "&&"
# What users call arguments of the processor's call elsewhere.
OTHER_NAMES = {"audios": "audio", "raw_speech": "audio", "texts": "text"}
OTHER_NAMES |= {"prompt": "text", "prompts": "text", "answers": "answer", "labels": "answer"}
OTHER_NAMES |= {"sample_rate": "sampling_rate", "rate": "sampling_rate"}
# Arguments of the processor's call that `apply_chat_template` passes on.
CALL_OPTIONS = {"answer", "sampling_rate", "padding", "padding_side", "overflow", "train_on_prompt"}
CALL_OPTIONS |= {"pad_to_multiple_of", "device", "rendered"}


class SamAudioLanguageProcessor(ProcessorMixin):
    """Converts text and audio to the inputs of [`SamForConditionalGeneration`] (paper, section 2.3).

    A sequence is `[audio slots] "### Instruction:\\n{prompt}\\n\\n### Response:\\n" [answer] <|endoftext|>`. The text
    is the prompt without the template; a text that is rendered already, such as the result of `apply_chat_template`,
    stays as it is (see [`is_rendered`]). `<|audio|>` marks the position of a clip: at the beginning of the text, the
    clip precedes the template, as in the paper; elsewhere it is within the instruction. The clips of a text without
    marks come first. Each mark is replaced by the slots of the connector: 64, 576 or 520 tokens.

    The tokenizer gets what batches need for generation where it lacks it: the end of text as padding token, and
    padding on the left, also of the feature extractor. Training pads on the right, by an argument.

    Args:
        feature_extractor ([`SamFeatureExtractor`]): Waveform to log-mel.
        tokenizer (`PreTrainedTokenizerFast`): A tokenizer with an end-of-text token (`eos_token`) and, for connectors
            with separators, `&&` as one token. `<|audio|>` is added to it if missing.
        connector (`str`, *optional*, defaults to `"concatenation"`): The model's connector.
        chat_template (`str`, *optional*): Jinja template; the default renders the whole prompt of a conversation
            (see `chat_sam`). The texts of a template without `### Instruction:`, as of checkpoints that were saved
            before, are wrapped as the text of a plain call is.
        patch_size (`int`, *optional*, defaults to 16): Patch size of the audio encoder.

    Raises:
        ValueError: Unknown connector, no end-of-text token, or `&&` is not one token but needed.
    """

    def __init__(self, feature_extractor, tokenizer, connector="concatenation", chat_template=None, patch_size=16):
        num_time_steps = feature_extractor.max_frames // patch_size
        self.slot_pattern = audio_slot_pattern(connector, num_time_steps, feature_extractor.feature_size // patch_size)
        self.connector = connector
        self.patch_size = patch_size
        self.auto_map = {name: AUTO_MAP[name] for name in ("AutoProcessor", "AutoFeatureExtractor")}
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "tokenizer: got one without an end-of-text token, which ends every answer; set it, as in "
                "PreTrainedTokenizerFast(..., eos_token='<|endoftext|>')."
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        # generation goes on at the right end; transformers' pipelines pad, and want both to agree
        tokenizer.padding_side = feature_extractor.padding_side = "left"
        tokenizer.init_kwargs["padding_side"] = "left"  # so that it is saved
        tokenizer.chat_template = self.chat_template  # both are saved as chat_template.jinja
        if AUDIO_TOKEN not in tokenizer.get_vocab():
            tokenizer.add_tokens([AUDIO_TOKEN], special_tokens=True)
        if not all(self.slot_pattern) and self.separator_token_id is None:
            raise ValueError(
                f"tokenizer: {SEPARATOR_TOKEN!r} is not one token of it, but the connector {connector!r} needs it "
                "between audio features; use the connector 'concatenation' or add the token."
            )

    @property
    def audio_token(self) -> str:
        """`<|audio|>`, which marks a clip in a text."""
        return AUDIO_TOKEN

    @property
    def audio_token_id(self) -> int:
        """Id of `<|audio|>`, the token at the position of each audio feature."""
        return self.tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)

    @property
    def separator_token_id(self) -> int | None:
        """Id of `&&`, or `None` if this is not one token."""
        ids = self.tokenizer(SEPARATOR_TOKEN, add_special_tokens=False)["input_ids"]
        return ids[0] if len(ids) == 1 and ids[0] != self.tokenizer.unk_token_id else None

    @property
    def model_input_names(self) -> list[str]:
        """The model's inputs that the processor returns."""
        return ["input_ids", "attention_mask", "input_features"]

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio: Any = None,
        answer: str | list[str] | None = None,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        overflow: str = "error",
        train_on_prompt: bool = False,
        pad_to_multiple_of: int | None = None,
        device: str | torch.device = "cpu",
        rendered: bool | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """
        Args:
            text (`str` or list of `str`, *optional*): The prompts, or texts that are rendered already. Without text
                only `input_features` are returned.
            audio (*optional*): One clip, anything that [`load_audio`] reads; a list of clips, assigned to the
                `<|audio|>` of the texts in order, or one to each text; or a list with a list of clips (or one clip, or
                `None`) for each text.
            answer (`str` or list of `str`, *optional*): The answers to train on, one for each text.
            sampling_rate (`int`, *optional*): Rate in Hz of clips that are arrays.
            padding (`bool` or `str`, *optional*, defaults to `True`): `True` (`"longest"`) or `False`
                (`"do_not_pad"`).
            padding_side (`str`, *optional*): `"left"` or `"right"`; by default right with answers, for training, and
                left without, for generation.
            return_tensors (`str`, *optional*): `"pt"`, `"np"`, or `None` for lists, without the batch axis if `text`
                is a single string (unless `overflow="window"`).
            overflow (`str`, *optional*, defaults to `"error"`): For clips of more than 10.24 s: `"error"`,
                `"truncate"` or `"window"` as in [`SamFeatureExtractor.__call__`]. With `"window"` a text is repeated,
                with its answer, for each window of its clip; `num_windows` counts the rows of each text.
            train_on_prompt (`bool`, *optional*, defaults to `False`): Also train on the text of the prompt, as LTU
                does; never on the audio slots.
            pad_to_multiple_of (`int`, *optional*): Round the padded length up to a multiple of this number.
            device (`str`, *optional*, defaults to `"cpu"`): Where to compute `input_features`.
            rendered (`bool`, *optional*): Whether the texts hold the template; by default [`is_rendered`] tells.

        Returns:
            [`BatchFeature`] with `input_ids` and `attention_mask` `[B, L]`, `input_features`
            `[num_clips, 1024, 128]` in the order of the slots (absent without audio), `labels` `[B, L]` with answers
            (the answer and end of text; -100 elsewhere), `num_windows` `[texts]` with `overflow="window"`.

        Raises:
            ValueError: Texts, clips and answers that do not match; a text with a special token other than `<|audio|>`,
                an answer with any; also by [`load_audio`].
            TypeError: An unknown argument; also by [`load_audio`].
        """
        for name in ("images", "videos"):  # transformers' apply_chat_template passes them to every processor
            if kwargs.get(name, 0) is None:
                del kwargs[name]
        if kwargs:
            known = [
                f"{name} (is it {OTHER_NAMES[name]}?)" if name in OTHER_NAMES else name for name in sorted(kwargs)
            ]
            raise TypeError(
                f"SamProcessor got unexpected arguments: {', '.join(known)}; expected text, audio, answer and the "
                "options that help(SamProcessor.__call__) lists."
            )
        check_choice("return_tensors", return_tensors, (None, "pt", "np"))
        if text is None:
            if audio is None or answer is not None:
                raise ValueError("text: got None, expected a prompt or a list of prompts.")
            clips = [audio] if _is_clip(audio) else list(audio)
            reading = self.feature_extractor.reading(overflow)
            waveforms = [load_audio(clip, sampling_rate, **reading) for clip in clips]
            return self.feature_extractor(waveforms, SAMPLING_RATE, return_tensors, overflow, device)
        texts = _checked_texts("text", text)
        if answer is None:
            check_not_files(texts)
        answers = None if answer is None else _checked_texts("answer", answer)
        if answers is not None and len(answers) != len(texts):
            raise ValueError(f"answer: got {len(answers)} for {len(texts)} texts, expected one for each.")
        data, num_long = self._encode(
            texts, assign_clips(texts, audio), answers, sampling_rate, overflow, train_on_prompt, device, rendered
        )
        num_clips = len(data["input_features"]) if "input_features" in data else 0
        self.feature_extractor.warn_truncated(overflow, num_long, num_clips)
        self.pad_rows(data, padding, padding_side or ("left" if answers is None else "right"), pad_to_multiple_of)
        single = isinstance(text, str) and overflow != "window"
        return _finish(data, return_tensors, single)

    def apply_chat_template(self, conversation, chat_template=None, tokenize=False, **kwargs):
        """`apply_chat_template` of transformers, with audio read by [`load_audio`].

        Messages and their items are those of [`read_chat`]: text, audio as a file, an array, base64 or a `data:` URL.
        Other URLs are refused. An array needs its rate, as `"sampling_rate"` of the item or as an argument. With
        `tokenize=True, return_dict=True` the result is that of [`~SamAudioLanguageProcessor.__call__`], whose
        arguments are accepted here and in `processor_kwargs`, and with `return_assistant_tokens_mask=True` also
        `assistant_masks` `[B, L]`: 1 at answers and their end of text.

        Raises:
            ValueError: As [`read_chat`], and what the template refuses, such as two questions without an answer.
        """
        options = dict(kwargs.pop("processor_kwargs", None) or {})
        for name in CALL_OPTIONS & kwargs.keys():
            options[name] = kwargs.pop(name)
        rate = options.pop("sampling_rate", None)
        templates = self.chat_template if isinstance(self.chat_template, dict) else {"default": self.chat_template}
        template = templates.get(chat_template or "default", chat_template)
        holds_prompt = "### Instruction:" in (template or "")
        masked = kwargs.pop("return_assistant_tokens_mask", False) and tokenize and kwargs.get("return_dict", False)
        if masked and not holds_prompt:
            raise ValueError(
                "return_assistant_tokens_mask: got True with a chat template that renders no answers, expected one as "
                "chat_sam.CHAT_TEMPLATE."
            )
        if masked and ("answer" in options or options.get("overflow") == "window"):
            raise ValueError(
                "return_assistant_tokens_mask: got True with answer or overflow='window', expected the answer as a "
                "message of the role assistant, and clips that are not repeated."
            )
        batched = isinstance(conversation, (list, tuple)) and isinstance((*conversation, None)[0], (list, tuple))
        chats = conversation if batched else [conversation]
        names = [f"conversation {index}" if batched else "conversation" for index in range(len(chats))]
        # All is checked before any clip is read.
        read = plain = [read_chat(chat, name) for chat, name in zip(chats, names)]
        if tokenize:
            load = partial(load_audio, **self.feature_extractor.reading(options.get("overflow", "error")))
            read = [read_chat(chat, name, load, rate) for chat, name in zip(chats, names)]
            options["sampling_rate"] = SAMPLING_RATE  # load_audio has resampled the clips
            options.setdefault("rendered", holds_prompt or None)
        try:
            result = super().apply_chat_template(
                read if batched else read[0], template, tokenize=tokenize, processor_kwargs=options, **kwargs
            )
        except TemplateError as error:
            raise ValueError(f"conversation: {error}") from error
        if masked:
            result["assistant_masks"] = self._assistant_masks(plain, template, result, kwargs)
        return result

    def _assistant_masks(self, chats, template, result, kwargs):
        """transformers' mask over the tokens of the rendered texts, over those of `result`."""
        options = {name: value for name, value in kwargs.items() if name not in ("return_dict", "return_tensors")}
        found = self.tokenizer.apply_chat_template(
            chats, chat_template=template, return_dict=True, return_assistant_tokens_mask=True, **options
        )
        mask = result["attention_mask"]
        rows = [mask] if isinstance(mask[0], int) else mask
        masks = []
        for row, ids, marked in zip(rows, found["input_ids"], found["assistant_masks"], strict=True):
            expanded = [value for token, value in zip(ids, marked) for _ in self._expand([token])[0]]
            padded = np.zeros(len(row), dtype=np.int64)
            padded[np.asarray(row).astype(bool)] = expanded
            masks.append(padded.tolist())
        kind = kwargs.get("return_tensors")
        if kind in ("pt", "np"):
            return as_tensors(torch.tensor(masks), kind)
        return masks[0] if rows[0] is mask else masks

    def batch_decode(self, sequences, *args, **kwargs):
        """As in transformers; not of the whole result of `generate(return_dict_in_generate=True)`."""
        if isinstance(sequences, dict) and "sequences" in sequences:
            raise ValueError(
                f"sequences: got {type(sequences).__name__}, expected ids; pass its .sequences, best without the "
                "prompt: output.sequences[:, inputs['input_ids'].shape[1] :]."
            )
        return super().batch_decode(sequences, *args, **kwargs)

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers, with the code of the whole model: during a training, Trainer pushes no other code."""
        files = super().save_pretrained(save_directory, **kwargs)
        copy_checkpoint_modules(save_directory, self.tokenizer.name_or_path)
        return files

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        copy_checkpoint_modules(working_dir, self.tokenizer.name_or_path)  # by save_pretrained(push_to_hub=True)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def push_to_hub(self, repo_id, **kwargs):
        """Pushes the processor's files and the code; see [`push_folder_to_hub`]."""
        return push_folder_to_hub(self, repo_id, **kwargs)

    def _encode(
        self,
        texts,
        clips,
        answers,
        sampling_rate,
        overflow,
        train_on_prompt,
        device="cpu",
        rendered=None,
        names=("text", "answer"),
    ) -> tuple[dict[str, Any], int]:
        """Unpadded rows of ids and labels, the features, and the number of clips with too many frames."""
        check_choice("overflow", overflow, OVERFLOWS)
        num_clips = [len(items) for items in clips]
        data = self.encode_texts(texts, num_clips, answers, train_on_prompt, rendered=rendered, names=names)
        reading = self.feature_extractor.reading(overflow)
        waveforms = [load_audio(clip, sampling_rate, **reading) for items in clips for clip in items]
        num_windows, num_long = [1] * len(texts), 0
        if waveforms:
            features, counts, num_long = self.feature_extractor.extract(waveforms, overflow, device)
            data["input_features"] = features
            if overflow == "window":
                remaining = iter(counts)
                per_text = [[next(remaining) for _ in items] for items in clips]
                if any(len(items) > 1 and max(items) > 1 for items in per_text):
                    raise ValueError(
                        "overflow: got 'window' for a text with several clips, one of them over 10.24 s, expected "
                        "one clip; use overflow='truncate'."
                    )
                num_windows = [items[0] if len(items) == 1 else 1 for items in per_text]
        if overflow == "window":
            for key in ("input_ids", "labels"):
                if key in data:
                    data[key] = [list(row) for row, count in zip(data[key], num_windows) for _ in range(count)]
            data["num_windows"] = num_windows
        return data, num_long

    def encode_rows(
        self, texts, audio, answers, overflow, train_on_prompt, names=("text", "answer")
    ) -> tuple[dict[str, Any], int]:
        """As `_encode`, for rows of training: `audio` has one clip, a list of clips or `None` for each text, and
        `names` are the columns of texts and answers."""
        texts, answers = _checked_texts(names[0], texts), _checked_texts(names[1], answers)
        for index, item in enumerate(audio):
            if isinstance(item, Real):  # such as NaN, a table's missing value
                raise ValueError(f"audio: got {item!r} at position {index}, expected a clip, a list of clips or None.")
        clips = [[item] if _is_clip(item) else item for item in audio]
        clips = [[clip for clip in items if clip is not None] for items in clips]
        return self._encode(texts, assign_clips(texts, clips), answers, None, overflow, train_on_prompt, names=names)

    def encode_texts(
        self, texts, num_clips, answers, train_on_prompt, cutoff=None, rendered=None, names=("text", "answer")
    ) -> dict[str, Any]:
        """Unpadded rows of ids, and with answers also of labels, and whether each row was cut (`is_cut`).

        As in LTU, a row keeps its first `cutoff` tokens of template, prompt, answer and end of text. Slots are neither
        counted nor cut, since each belongs to a clip. `names` are those of texts and answers in errors.
        """
        tokens = special_tokens(self.tokenizer)
        in_prompts = [token for token in tokens if token != AUDIO_TOKEN]
        places = [f"{names[0]}, position {index}" if len(texts) > 1 else names[0] for index in range(len(texts))]
        whole = [rendered or (rendered is None and is_rendered(*each)) for each in zip(texts, places)]
        end = self.tokenizer.eos_token  # ends earlier answers in a prompt that is rendered
        plain = [text.replace(end, "") if is_whole else text for text, is_whole in zip(texts, whole)]
        check_texts(names[0], plain, in_prompts)
        check_texts(names[1], answers or [], tokens)
        # Space around the first marks does not count, unless the caller says that the text is the prompt as it is.
        given = [text if rendered else _trim_marks(text) for text in texts]
        prompts = [_render(*each) for each in zip(given, num_clips, whole)]
        rows = [self._expand(ids) for ids in self.tokenize_texts(prompts)]
        data: dict[str, Any] = {"input_ids": [ids for ids, _ in rows]}
        if answers is None:
            return data
        data.update(input_ids=[], labels=[], is_cut=[])
        for (ids, slots), answer in zip(rows, self.tokenize_texts(answers)):
            ending = answer + [self.tokenizer.eos_token_id]
            labels = [token if train_on_prompt and not slot else IGNORE_INDEX for token, slot in zip(ids, slots)]
            ids, labels, slots = ids + ending, labels + ending, slots + [False] * len(ending)
            is_cut = cutoff is not None and len(ids) - sum(slots) > cutoff
            if is_cut:
                position = accumulate(not slot for slot in slots)
                keep = [slot or place <= cutoff for slot, place in zip(slots, position)]
                ids, labels = list(compress(ids, keep)), list(compress(labels, keep))
            data["input_ids"].append(ids)
            data["labels"].append(labels)
            data["is_cut"].append(is_cut)
        return data

    def tokenize_texts(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, padding=False, truncation=False)["input_ids"]

    def _expand(self, ids: list[int]) -> tuple[list[int], list[bool]]:
        """Replaces each `<|audio|>` by the slots, and returns for each token whether it is a slot."""
        audio_id = self.audio_token_id
        separator_id = self.separator_token_id
        slot_ids: list[Any] = [audio_id if is_audio else separator_id for is_audio in self.slot_pattern]
        expanded: list[int] = []
        slots: list[bool] = []
        for token in ids:
            expanded += slot_ids if token == audio_id else [token]
            slots += [True] * len(slot_ids) if token == audio_id else [False]
        return expanded, slots

    def pad_rows(self, data, padding, side, multiple) -> None:
        """Pads the rows of ids and labels in place, and adds the mask, which alone tells pads from tokens."""
        check_choice("padding", padding, (True, False, "longest", "do_not_pad"))
        check_choice("padding_side", side, ("left", "right"))
        pad_id = self.tokenizer.pad_token_id
        pad_id = self.tokenizer.eos_token_id if pad_id is None else pad_id
        data["attention_mask"] = [[1] * len(row) for row in data["input_ids"]]
        if padding in (False, "do_not_pad"):
            return
        length = max(len(row) for row in data["input_ids"])
        length = math.ceil(length / (multiple or 1)) * (multiple or 1)
        for key, value in (("input_ids", pad_id), ("labels", IGNORE_INDEX), ("attention_mask", 0)):
            if key in data:
                fills = [[value] * (length - len(row)) for row in data[key]]
                data[key] = [fill + row if side == "left" else row + fill for row, fill in zip(data[key], fills)]


SamProcessor = SamAudioLanguageProcessor


def _is_list(item: Any) -> bool:
    """Whether `item` is a list, a tuple or a similar sequence, such as a column of `datasets`."""
    return isinstance(item, Sequence) and not isinstance(item, (str, bytes, bytearray, memoryview))


def _is_clip(item: Any) -> bool:
    """Whether `item` is one clip: anything but a list, or a list of numbers."""
    return not _is_list(item) or (len(item) > 0 and isinstance(item[0], Real))


def _checked_texts(name: str, texts: Any) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    advice = ""
    if isinstance(texts, (np.ndarray, torch.Tensor, bytes)) or hasattr(texts, "read"):
        advice = "; pass a clip by name: audio=..."
    elif isinstance(texts, Real):
        advice = "; pass a rate by name: sampling_rate=..."
    if not _is_list(texts) or len(texts) == 0:
        raise ValueError(f"{name}: got {repr(texts)[:80]}, expected a string or a list of strings{advice}.")
    texts = list(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            turn = text[0] if _is_list(text) and len(text) else text
            if isinstance(turn, dict) and "role" in turn:
                advice = "; it is a chat: pass it to processor.apply_chat_template(chat, tokenize=True, "
                advice += "return_dict=True, return_tensors='pt')"
            raise ValueError(f"{name}: got {repr(text)[:80]} at position {index}, expected a string{advice}.")
    return texts


def check_not_files(texts: list[str]) -> None:
    """Refuses a text that is the path of an existing file: a clip that was passed as the prompt."""
    for text in texts:
        if len(text) < 1000 and "\0" not in text and os.path.splitext(text)[1] and os.path.isfile(text):
            raise ValueError(f"text: got the path of a file, {text!r}, expected a prompt; pass a clip as audio=....")


def assign_clips(texts: list[str], audio: Any) -> list[list[Any]]:
    """The clips of each text."""
    marks = [text.count(AUDIO_TOKEN) for text in texts]
    if audio is None:
        clips: list[list[Any]] = [[] for _ in texts]
    elif _is_clip(audio) or not all(item is not None and _is_clip(item) for item in audio):
        nested = [audio] if _is_clip(audio) else audio
        if len(nested) != len(texts):
            raise ValueError(f"audio: got clips for {len(nested)} texts, expected {len(texts)} as in text.")
        clips = [[] if item is None else [item] if _is_clip(item) else list(item) for item in nested]
    elif sum(marks) == len(audio) or len(texts) == 1:
        rest = iter(audio)
        clips = [list(rest)] if len(texts) == 1 else [[next(rest) for _ in range(count)] for count in marks]
    elif len(audio) == len(texts):
        clips = [[clip] for clip in audio]
    else:
        raise ValueError(
            f"audio: got {len(audio)} clips for {len(texts)} texts with {sum(marks)} {AUDIO_TOKEN}, expected one for "
            f"each {AUDIO_TOKEN} or for each text, or a list of lists."
        )
    for text, count, items in zip(texts, marks, clips):
        if count and count != len(items):
            raise ValueError(
                f"audio: got {len(items)} clips for {count} {AUDIO_TOKEN} in {text[:80]!r}, expected {count}."
            )
    return clips


def _trim_marks(text: str) -> str:
    """A text whose first `<|audio|>` have no space before, between or after them."""
    leading = re.match(rf"(?:\s*{re.escape(AUDIO_TOKEN)})+\s*", text)
    return "".join(leading.group().split()) + text[leading.end() :] if leading else text


def _render(text: str, num_clips: int, is_whole: bool) -> str:
    """The text up to the answer, with one `<|audio|>` for each clip; those at the beginning precede the template."""
    leading = re.match(rf"(?:{re.escape(AUDIO_TOKEN)})+", text)
    marks = leading.group() if leading and not is_whole else ""
    prompt = text[len(marks) :]
    if AUDIO_TOKEN not in text:
        marks = AUDIO_TOKEN * num_clips
    return marks + (prompt if is_whole else PROMPT_TEMPLATE.format(prompt=prompt))


def _finish(data: dict[str, Any], return_tensors: str | None, single: bool) -> BatchFeature:
    """The result as tensors, or as lists, without the batch axis for a single text."""
    lists = [key for key in ("input_ids", "attention_mask", "labels", "num_windows") if key in data]
    if return_tensors is None:
        if single:
            data.update({key: data[key][0] for key in lists})
    else:
        if len({len(row) for row in data["input_ids"]}) > 1:
            raise ValueError(
                f"padding: got False with texts of different lengths and return_tensors={return_tensors!r}, expected "
                "True; or pass return_tensors=None."
            )
        data.update({key: as_tensors(torch.tensor(data[key]), return_tensors) for key in lists})
    if "input_features" in data:
        data["input_features"] = as_tensors(data["input_features"], return_tensors)
    return BatchFeature({key: data[key] for key in (*lists, "input_features") if key in data})


SamAudioLanguageProcessor.register_for_auto_class("AutoProcessor")
AutoFeatureExtractor.register(SamConfig, SamFeatureExtractor, exist_ok=True)
AutoProcessor.register(SamConfig, SamAudioLanguageProcessor, exist_ok=True)
