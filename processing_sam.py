"""Audio and text to the inputs of SAM: prompt, audio slots, labels.

[`SamAudioLanguageProcessor`] (alias `SamProcessor`) combines audio with text; [`SamDataCollator`] makes training
batches.
"""

import math
import re
from collections.abc import Sequence
from itertools import accumulate, compress
from numbers import Real
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoProcessor, BatchFeature, ProcessorMixin
from transformers.utils import logging

try:
    from .audio_sam import OVERFLOWS, SAMPLING_RATE, SamFeatureExtractor, as_tensors, check_choice, load_audio
except ImportError:
    if __package__:
        raise
    from audio_sam import OVERFLOWS, SAMPLING_RATE, SamFeatureExtractor, as_tensors, check_choice, load_audio
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

AUDIO_TOKEN = "<|audio|>"
SEPARATOR_TOKEN = "&&"
PROMPT_TEMPLATE = "### Instruction:\n{prompt}\n\n### Response:\n"
IGNORE_INDEX = -100
# Arguments of the processor's call that `apply_chat_template` passes on.
CALL_OPTIONS = {"answer", "sampling_rate", "padding", "padding_side", "overflow", "train_on_prompt"}
CALL_OPTIONS |= {"pad_to_multiple_of", "device"}

# Only the text: the processor adds the prompt template, so that a chat and a plain call yield the same tokens.
CHAT_TEMPLATE = (
    "{%- if messages | length != 1 or messages[0]['role'] != 'user' -%}"
    "{{ raise_exception('SAM answers one question at a time: expected one message of the role user, got '"
    " ~ (messages | map(attribute='role') | join(', ')) ~ '.') }}"
    "{%- endif -%}"
    "{%- set content = messages[0]['content'] -%}"
    "{%- if content is string -%}{{ content }}{%- else -%}"
    "{%- for item in content if item['type'] == 'audio' -%}<|audio|>{%- endfor -%}"
    "{%- for item in content if item['type'] == 'text' -%}{{ item['text'] }}{%- endfor -%}"
    "{%- endif -%}"
)


class SamAudioLanguageProcessor(ProcessorMixin):
    """Converts text and audio to the inputs of [`SamForConditionalGeneration`] (paper, section 2.3).

    A sequence is `[audio slots] "### Instruction:\\n{prompt}\\n\\n### Response:\\n" [answer] <|endoftext|>`. The text
    is the prompt without the template. `<|audio|>` marks the position of a clip: at the beginning of the text, the
    clip precedes the template, as in the paper; elsewhere it is within the instruction. The clips of a text without
    marks come first. Each mark is replaced by the slots of the connector: 64, 576 or 520 tokens.

    Args:
        feature_extractor ([`SamFeatureExtractor`]): Waveform to log-mel.
        tokenizer (`PreTrainedTokenizerFast`): A tokenizer with an end-of-text token (`eos_token`) and, for connectors
            with separators, `&&` as one token. `<|audio|>` is added to it if missing.
        connector (`str`, *optional*, defaults to `"concatenation"`): The model's connector.
        chat_template (`str`, *optional*): Jinja template; the default takes one message of the user, with its clips
            first.
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
        **kwargs: Any,
    ) -> BatchFeature:
        """
        Args:
            text (`str` or list of `str`, *optional*): The prompts. Without text only `input_features` are returned.
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

        Returns:
            [`BatchFeature`] with `input_ids` and `attention_mask` `[B, L]`, `input_features`
            `[num_clips, 1024, 128]` in the order of the slots (absent without audio), `labels` `[B, L]` with answers
            (the answer and end of text; -100 elsewhere), `num_windows` `[texts]` with `overflow="window"`.

        Raises:
            ValueError: Texts, clips and answers that do not match; also by [`load_audio`].
            TypeError: An unknown argument; also by [`load_audio`].
        """
        for name in ("images", "videos"):  # transformers' apply_chat_template passes them to every processor
            if kwargs.get(name, 0) is None:
                del kwargs[name]
        if kwargs:
            raise TypeError(f"SamProcessor got unexpected arguments: {', '.join(sorted(kwargs))}.")
        check_choice("return_tensors", return_tensors, (None, "pt", "np"))
        if text is None:
            if audio is None or answer is not None:
                raise ValueError("text: got None, expected a prompt or a list of prompts.")
            clips = [audio] if _is_clip(audio) else list(audio)
            reading = self.feature_extractor.reading(overflow)
            waveforms = [load_audio(clip, sampling_rate, **reading) for clip in clips]
            return self.feature_extractor(waveforms, SAMPLING_RATE, return_tensors, overflow, device)
        texts = _checked_texts("text", text)
        answers = None if answer is None else _checked_texts("answer", answer)
        if answers is not None and len(answers) != len(texts):
            raise ValueError(f"answer: got {len(answers)} for {len(texts)} texts, expected one for each.")
        for item in answers or []:
            if AUDIO_TOKEN in item:
                raise ValueError(f"answer: got {item!r}, expected text without {AUDIO_TOKEN}.")
        data, num_long = self._encode(
            texts, assign_clips(texts, audio), answers, sampling_rate, overflow, train_on_prompt, device
        )
        num_clips = len(data["input_features"]) if "input_features" in data else 0
        self.feature_extractor.warn_truncated(overflow, num_long, num_clips)
        self.pad_rows(data, padding, padding_side or ("left" if answers is None else "right"), pad_to_multiple_of)
        single = isinstance(text, str) and overflow != "window"
        return _finish(data, return_tensors, single)

    def apply_chat_template(self, conversation, chat_template=None, tokenize=False, **kwargs):
        """`apply_chat_template` of transformers, with audio read by [`load_audio`].

        An audio item is `{"type": "audio", "audio": ...}` or `{"type": "audio", "path": ...}`. An array needs its
        rate, as `"sampling_rate"` of the item or as an argument. URLs are refused. With `tokenize=True,
        return_dict=True` the result is that of [`~SamAudioLanguageProcessor.__call__`], whose arguments are accepted
        here and in `processor_kwargs`.
        """
        options = dict(kwargs.pop("processor_kwargs", None) or {})
        for name in CALL_OPTIONS & kwargs.keys():
            options[name] = kwargs.pop(name)
        rate = options.pop("sampling_rate", None)
        if tokenize:
            batched = bool(conversation) and isinstance(conversation[0], (list, tuple))
            chats = [
                [{**message, "content": _loaded_items(message.get("content"), rate)} for message in chat]
                for chat in (conversation if batched else [conversation])
            ]
            conversation = chats if batched else chats[0]
            options["sampling_rate"] = SAMPLING_RATE  # load_audio has resampled the clips
        return super().apply_chat_template(
            conversation, chat_template, tokenize=tokenize, processor_kwargs=options, **kwargs
        )

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
        self, texts, clips, answers, sampling_rate, overflow, train_on_prompt, device="cpu"
    ) -> tuple[dict[str, Any], int]:
        """Unpadded rows of ids and labels, the features, and the number of clips with too many frames."""
        check_choice("overflow", overflow, OVERFLOWS)
        data = self.encode_texts(texts, [len(items) for items in clips], answers, train_on_prompt)
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

    def encode_texts(self, texts, num_clips, answers, train_on_prompt, cutoff=None) -> dict[str, Any]:
        """Unpadded rows of ids, and with answers also of labels, and whether each row was cut (`is_cut`).

        As in LTU, a row keeps its first `cutoff` tokens of template, prompt, answer and end of text. Slots are neither
        counted nor cut, since each belongs to a clip.
        """
        rows = [self._expand(ids) for ids in self.tokenize_texts([_render(*pair) for pair in zip(texts, num_clips)])]
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
    if not _is_list(texts) or len(texts) == 0:
        raise ValueError(f"{name}: got {repr(texts)[:80]}, expected a string or a list of strings.")
    texts = list(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}: got {repr(text)[:80]} at position {index}, expected a string.")
    return texts


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


def _render(text: str, num_clips: int) -> str:
    """The text up to the answer, with one `<|audio|>` for each clip; those at the beginning precede the template."""
    leading = re.match(rf"(?:\s*{re.escape(AUDIO_TOKEN)})+\s*", text)
    prompt = text[leading.end() :] if leading else text
    count = leading.group().count(AUDIO_TOKEN) if leading else 0
    if AUDIO_TOKEN not in text:
        count = num_clips
    return AUDIO_TOKEN * count + PROMPT_TEMPLATE.format(prompt=prompt)


def _loaded_items(content: Any, sampling_rate: int | None) -> Any:
    """The content of a chat message with its audio loaded, so that transformers downloads nothing."""
    if not isinstance(content, (list, tuple)):
        return content
    items = []
    for item in content:
        if item["type"] == "audio":
            source = next((item[key] for key in ("audio", "path", "url") if item.get(key) is not None), None)
            if source is None:
                raise ValueError(f"conversation: got an audio item with the keys {sorted(item)}, expected 'audio'.")
            item = {"type": "audio", "audio": load_audio(source, item.get("sampling_rate") or sampling_rate)}
        items.append(item)
    return items


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


# -- Batches for training -----------------------------------------------------------------------------------------


class SamDataCollator:
    """Makes right-padded training batches from raw rows or from results of the processor.

    For raw rows pass `remove_unused_columns=False` to Trainer, which otherwise removes the audio. Read an Audio column
    of `datasets` with `cast_column("audio", Audio(decode=False))`, which needs no torchcodec.

    Args:
        processor ([`SamAudioLanguageProcessor`]): The processor.
        audio_column (`str`, *optional*, defaults to `"audio"`): Clip of a raw row: anything that [`load_audio`] reads
            (arrays as `{"array", "sampling_rate"}`), a list of clips, or `None` for text only.
        prompt_column (`str`, *optional*, defaults to `"prompt"`): Prompt of a raw row.
        answer_column (`str`, *optional*, defaults to `"answer"`): Answer of a raw row.
        overflow (`str`, *optional*, defaults to `"truncate"`): `"truncate"` or `"error"`, for clips over 10.24 s.
        train_on_prompt (`bool`, *optional*, defaults to `False`): Also train on the text of the prompt, as LTU does.
        pad_to_multiple_of (`int`, *optional*): Round the padded length up to a multiple of this number.
    """

    def __init__(
        self,
        processor,
        audio_column="audio",
        prompt_column="prompt",
        answer_column="answer",
        overflow="truncate",
        train_on_prompt=False,
        pad_to_multiple_of=None,
    ):
        check_choice("overflow", overflow, ("truncate", "error"))
        self.processor = processor
        self.audio_column = audio_column
        self.prompt_column = prompt_column
        self.answer_column = answer_column
        self.overflow = overflow
        self.train_on_prompt = train_on_prompt
        self.pad_to_multiple_of = pad_to_multiple_of
        # Shared with the workers of a DataLoader. Each has its own entry, so that no lock is needed.
        self._truncated = torch.zeros(256, dtype=torch.int64).share_memory_()

    @property
    def num_truncated(self) -> int:
        """How often clips over 10.24 s have been truncated so far, in all workers."""
        return int(self._truncated.sum())

    def __call__(self, rows: list[dict[str, Any]]) -> BatchFeature:
        """
        Args:
            rows (`list[dict]`): All raw, or all results of the processor (`input_ids`, and optionally
                `attention_mask`, `labels`, `input_features`).

        Returns:
            [`BatchFeature`] of tensors: `input_ids`, `attention_mask`, `labels`, `input_features`.

        Raises:
            ValueError: Missing columns, or audio slots and `input_features` of a row that do not match.
        """
        rows = [dict(row) for row in rows]
        processed = all("input_ids" in row for row in rows)
        data = self._join(rows) if processed else self._process(rows)
        self.processor.pad_rows(data, True, "right", self.pad_to_multiple_of)
        return _finish(data, "pt", single=False)

    def _process(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        for name in (self.audio_column, self.prompt_column, self.answer_column):
            if not all(name in row for row in rows):
                raise ValueError(
                    f"rows: got the columns {sorted({key for row in rows for key in row})}, expected also {name!r}. "
                    "If the dataset has it, Trainer has removed it: remove_unused_columns=True removes all columns "
                    "that are no arguments of forward(): pass TrainingArguments(remove_unused_columns=False). If it "
                    "has another name, pass audio_column, prompt_column or answer_column; for rows without audio the "
                    "audio is None."
                )
        texts = _checked_texts(self.prompt_column, [row[self.prompt_column] for row in rows])
        answers = _checked_texts(self.answer_column, [row[self.answer_column] for row in rows])
        audio = [
            [row[self.audio_column]] if _is_clip(row[self.audio_column]) else row[self.audio_column] for row in rows
        ]
        audio = [[clip for clip in clips if clip is not None] for clips in audio]
        data, num_long = self.processor._encode(
            texts, assign_clips(texts, audio), answers, None, self.overflow, self.train_on_prompt
        )
        if num_long:
            if not self.num_truncated:
                logger.warning("Clips over 10.24 s are truncated; num_truncated of the collator counts them.")
            worker = torch.utils.data.get_worker_info()
            self._truncated[(0 if worker is None else worker.id + 1) % len(self._truncated)] += num_long
        return data

    def _join(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        with_labels = [row.get("labels") is not None for row in rows]
        if any(with_labels) and not all(with_labels):
            raise ValueError("labels: got rows with and without them, expected all or none.")
        data: dict[str, Any] = {"input_ids": [], **({"labels": []} if all(with_labels) else {})}
        features = []
        for row in rows:
            ids = np.asarray(row["input_ids"]).reshape(-1)
            mask = row.get("attention_mask")
            keep = np.ones(len(ids), bool) if mask is None else np.asarray(mask).reshape(-1).astype(bool)
            for key in data:
                data[key].append(np.asarray(row[key]).reshape(-1)[keep].tolist())
            clips = self._clips(row.get("input_features"))
            expected = sum(self.processor.slot_pattern)
            found = data["input_ids"][-1].count(self.processor.audio_token_id)
            if found != expected * len(clips):
                raise ValueError(
                    f"input_features: got {len(clips)} clips for {found} audio slots in input_ids, expected "
                    f"{found / expected:g} ({expected} slots for each clip); if the dataset has them, check that "
                    "nothing, such as Trainer's remove_unused_columns, removes them."
                )
            features.append(clips)
        if sum(map(len, features)):
            data["input_features"] = torch.cat(features).float()
        return data

    def _clips(self, features: Any) -> torch.Tensor:
        extractor = self.processor.feature_extractor
        shape = (extractor.max_frames, extractor.feature_size)
        if features is None or len(features) == 0:
            return torch.empty((0, *shape))
        if not isinstance(features, torch.Tensor):
            features = torch.from_numpy(np.asarray(features, dtype=np.float32))
        if features.shape[-2:] != shape or features.ndim > 3:
            raise ValueError(
                f"input_features: got the shape {tuple(features.shape)}, expected [clips, {shape[0]}, {shape[1]}]."
            )
        return features.reshape(-1, *shape)


SamAudioLanguageProcessor.register_for_auto_class("AutoProcessor")
AutoFeatureExtractor.register(SamConfig, SamFeatureExtractor, exist_ok=True)
AutoProcessor.register(SamConfig, SamAudioLanguageProcessor, exist_ok=True)
