"""Reads audio files and arrays ([`load_audio`]) and computes EAT's log-mel ([`SamFeatureExtractor`])."""

import base64
import math
import os
import re
from functools import lru_cache
from numbers import Real
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import logging

try:
    from .checks_sam import check_samples, check_waveforms
except ImportError:
    if __package__:
        raise
    from checks_sam import check_samples, check_waveforms
try:
    from .sound_files_sam import (
        FRAME_LENGTH,
        MAX_AMPLITUDE,
        MAX_CHANNELS,
        SAMPLING_RATE,
        UndecodableError,
        Waveform,
        check_rate,
        read_decoder,
        read_sound,
    )
except ImportError:
    if __package__:
        raise
    from sound_files_sam import (
        FRAME_LENGTH,
        MAX_AMPLITUDE,
        MAX_CHANNELS,
        SAMPLING_RATE,
        UndecodableError,
        Waveform,
        check_rate,
        read_decoder,
        read_sound,
    )

logger = logging.get_logger(__name__)

OVERFLOWS = ("error", "truncate", "window")  # treatments of a clip of more than 10.24 s
FRAME_SHIFT = 160  # samples, 10 ms
FFT_LENGTH = 512
ENERGY_FLOOR = 1.1920928955078125e-07  # float32's epsilon, as in Kaldi
MAX_SECONDS = 10800.0  # 3 hours
DATA_URL = re.compile(r"\s*data:[^,]{0,500},", re.IGNORECASE)


# -- Reading audio ------------------------------------------------------------------------------------------------


def load_audio(
    source: Any,
    sampling_rate: int | None = None,
    *,
    max_seconds: float | None = MAX_SECONDS,
    duration: float | None = None,
    incomplete: str = "error",
) -> np.ndarray:
    """Reads one clip as a mono waveform at 16 kHz.

    Channels are averaged, other rates resampled (soxr, high quality). Files are decoded by libsndfile, or if it
    cannot (m4a, webm) by torchcodec if that is installed, else by an `ffmpeg` on the PATH. They are read to their
    end, also where several are joined, or where a header counts too little.

    Args:
        source: One of

            - a path (`str` or `os.PathLike`), the content of a file (`bytes`), an open binary file, or a `data:` URL
              with base64 (`"data:audio/wav;base64,..."`);
            - an array or tensor of samples, or a list of numbers: `[T]`, or two axes of which the shorter one is the
              channels, at most 32 (both soundfile's `[T, C]` and torchcodec's `[C, T]`). Floating-point samples, about
              [-1, 1], are not scaled; int16, int32 and uint8 are scaled to this range;
            - a row of a `datasets` Audio column: `{"array", "sampling_rate"}` or `{"bytes", "path"}`, or its decoder
              (any object with `get_all_samples()`).
        sampling_rate (`int`, *optional*): Rate of an array in Hz, required for arrays. Files, `datasets` rows and
            decoders have their own.
        max_seconds (`float`, *optional*, defaults to 10800): The longest clip, 3 hours. A small file may hold days of
            silence; decoding stops here. `None` is no limit.
        duration (`float`, *optional*): Read the first seconds only, and decode no more.
        incomplete (`str`, *optional*, defaults to `"error"`): For a file that breaks off: `"error"`, or `"keep"` to
            take what is there. A WAV, FLAC, Ogg, MP4, WebM or WMA file tells whether it does; an MP3 only by a header
            with counts.

    Returns:
        `np.ndarray`: `[T]`, float32, at least 400 samples.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: Another URL (nothing is downloaded), audio that cannot be decoded, breaks off, is empty, under
            25 ms, longer than `max_seconds`, not finite or of a wrong shape, an array without a rate.
        TypeError: Another kind of source.
    """
    check_choice("incomplete", incomplete, ("error", "keep"))
    name = _describe(source)
    clip = Waveform(name, max_seconds, duration)
    if isinstance(source, dict):
        if source.get("array") is not None:
            sampling_rate = source.get("sampling_rate") or sampling_rate
            source = source["array"]
        elif source.get("bytes"):
            source = source["bytes"]
        elif source.get("path") is not None:
            source = source["path"]
        else:
            raise ValueError(
                f"audio: got {name}, expected 'array' and 'sampling_rate', 'bytes' or 'path', as in a datasets row."
            )
    if isinstance(source, (str, os.PathLike)):
        read_sound(_checked_file(source), name, clip, incomplete)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        read_sound(bytes(source), name, clip, incomplete)
    elif hasattr(source, "get_all_samples"):
        try:
            read_decoder(source, name, clip, incomplete == "keep")
        except UndecodableError as error:
            raise ValueError(f"audio: {name} cannot be decoded ({error}).") from error
    elif isinstance(source, (np.ndarray, torch.Tensor, list, tuple)):
        if sampling_rate is None:
            raise ValueError(
                f"sampling_rate: got None with {name}, expected its rate in Hz; pass sampling_rate=..., or the "
                "file's path instead of its samples."
            )
        clip.add(_as_floats(source, name), check_rate(sampling_rate, name))
    elif hasattr(source, "read"):
        content = source.read()
        if not isinstance(content, bytes):
            raise ValueError(f"audio: got {name} opened in text mode, expected binary mode ('rb').")
        read_sound(content, name, clip, incomplete)
    else:
        raise TypeError(
            f"audio: got {name}, expected a path, bytes, a binary file, an array, a tensor or a datasets row."
        )
    return clip.samples()


def _describe(source: Any) -> str:
    """The name of a clip in error messages."""
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        if DATA_URL.match(path) and not os.path.exists(path):
            return f"a data: URL of {len(path)} characters"
        return repr(path)
    if isinstance(source, dict):
        if source.get("path") and isinstance(source["path"], (str, os.PathLike)):
            return _describe(source["path"])
        return f"a dict with the keys {sorted(map(str, source))}"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes"
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return f"an array of shape {tuple(source.shape)} and type {source.dtype}"
    return f"an object of type {type(source).__name__}"


def _checked_file(path: str | os.PathLike) -> str | bytes:
    """The path of an existing file, whatever it is called, or the content of a `data:` URL."""
    path = os.fsdecode(path)
    if not os.path.exists(path):
        if DATA_URL.match(path):
            return _data_url(path)
        if url := re.match(r"\s*([a-z][a-z0-9+.-]+:(//|:)|file:)", path, re.IGNORECASE):
            do = "pass the file's path" if url[1].lower().startswith("file:") else "download it first"
            raise ValueError(f"audio: got the URL {path[:200]!r}, expected a path or a data: URL; {do}.")
        raise FileNotFoundError(f"audio: the file {path[:5000]!r} does not exist.")
    if not os.path.isfile(path):
        raise ValueError(f"audio: {path!r} is not a file.")
    return path


def _data_url(url: str) -> bytes:
    head, _, content = url.partition(",")
    kind, *options = head.lstrip()[5:].lower().replace(" ", "").split(";")
    if "base64" not in options or not re.match(r"(audio|video)/|application/(ogg|octet-stream)$|$", kind):
        raise ValueError(f"audio: got the URL {head[:200]!r}, expected 'data:audio/...;base64' with base64.")
    content = re.sub(r"\s", "", unquote(content) if "%" in content else content)
    try:
        return base64.b64decode(content + "=" * (-len(content) % 4), validate=True)
    except ValueError as error:
        raise ValueError(f"audio: the base64 of the URL {head[:200]!r} cannot be decoded ({error}).") from error


def _as_floats(samples: Any, name: str) -> np.ndarray:
    """Samples of any supported type as floating point, `[samples]` or `[samples, channels]`."""
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        samples = (samples.float() if samples.dtype == torch.bfloat16 else samples).numpy()
    try:
        samples = np.asarray(samples)
    except ValueError as error:
        raise ValueError(f"audio: {name} is not a rectangular array of numbers ({error}).") from error
    if samples.size == 0:
        raise ValueError(f"audio: {name} is empty.")
    if samples.dtype == np.int16:
        samples = samples.astype(np.float32) / 32768.0
    elif samples.dtype == np.int32:
        samples = (samples / 2147483648.0).astype(np.float32)
    elif samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128.0) / 128.0
    elif samples.dtype.kind != "f":
        raise ValueError(
            f"audio: {name} has samples of type {samples.dtype}, expected floating point in [-1, 1], int16, int32 or "
            "uint8."
        )
    if samples.ndim == 2 and min(samples.shape) <= MAX_CHANNELS and samples.shape[0] != samples.shape[1]:
        return samples.T if samples.shape[0] < samples.shape[1] else samples
    if samples.ndim != 1:
        raise ValueError(
            f"audio: {name} has the shape {samples.shape}, expected [samples], or [channels, samples] or "
            f"[samples, channels] with at most {MAX_CHANNELS} channels and more samples than channels."
        )
    return samples


# -- Log-mel ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # cached tensors must work in any mode
def _mel_banks(num_mel_bins: int, device: torch.device) -> torch.Tensor:
    """Kaldi's triangular filters from 20 Hz to 8 kHz, `[257, num_mel_bins]`, rounded as torchaudio rounds them.

    Cached on the device: a copy for every batch would wait for it.
    """
    if device.type != "cpu":
        return _mel_banks(num_mel_bins, torch.device("cpu")).to(device)
    low, high = (1127.0 * math.log(1.0 + frequency / 700.0) for frequency in (20.0, SAMPLING_RATE / 2))
    delta = (high - low) / (num_mel_bins + 1)
    index = torch.arange(num_mel_bins, dtype=torch.float32, device="cpu").unsqueeze(1)
    left, center, right = low + index * delta, low + (index + 1.0) * delta, low + (index + 2.0) * delta
    frequencies = SAMPLING_RATE / FFT_LENGTH * torch.arange(FFT_LENGTH // 2, dtype=torch.float32, device="cpu")
    mel = 1127.0 * (1.0 + frequencies / 700.0).log()
    banks = torch.minimum((mel - left) / (center - left), (right - mel) / (right - center)).clamp(min=0.0)
    return torch.nn.functional.pad(banks, (0, 1)).T.contiguous()  # Kaldi excludes the bin of 8 kHz


def fbank(frames: torch.Tensor, num_mel_bins: int) -> torch.Tensor:
    """Kaldi's log-mel of frames `[N, 400]`, as `[N, num_mel_bins]`.

    The order of operations is torchaudio's, in float32, since its rounding matters near the floor.
    """
    banks = _mel_banks(num_mel_bins, frames.device)
    window = torch.hann_window(FRAME_LENGTH, periodic=False, dtype=torch.float32, device=frames.device)
    frames = frames - frames.mean(dim=1, keepdim=True)
    padded = frames.new_zeros(frames.shape[0], FFT_LENGTH)
    emphasized = padded[:, :FRAME_LENGTH]
    torch.mul(frames[:, :1], 0.97, out=emphasized[:, :1])  # the first sample is also its own predecessor
    torch.mul(frames[:, :-1], 0.97, out=emphasized[:, 1:])
    torch.sub(frames, emphasized, out=emphasized).mul_(window)
    spectrum = torch.fft.rfft(padded)
    power = spectrum.real.square() + spectrum.imag.square()  # [N, 257]
    if power.device.type == "cuda":
        # TF32, which training often allows, is too coarse for the sum over bins; float64 never uses it.
        mel = (power.double() @ banks.double()).float()
    else:
        mel = power @ banks
    return mel.clamp_(min=ENERGY_FLOOR).log_()


class SamFeatureExtractor(SequenceFeatureExtractor):
    """EAT's preprocessing: 16 kHz waveforms to normalised log-mel spectrograms of 1,024 frames (paper, section 2.1).

    Steps: subtract the mean of the clip; Kaldi's filter bank (25 ms frames every 10 ms, Hann, 128 mel bins from 20 Hz
    to 8 kHz, natural logarithm); fill the end with zeros; normalise by `(x - mean) / (2 * std)`, so that a filled
    frame is 0.46706 with the defaults. The mean is EAT's, that of the whole waveform passed; if a file is truncated
    while it is read, that of the part. Both give the same up to rounding, since each frame's own mean is subtracted.

    Args:
        feature_size (`int`, *optional*, defaults to 128): Mel bins.
        sampling_rate (`int`, *optional*, defaults to 16000): Hz; the length of a frame is fixed for this rate.
        padding_value (`float`, *optional*, defaults to 0.0): Value of filled frames before normalisation.
        max_frames (`int`, *optional*, defaults to 1024): Frames of the result, 10.24 s.
        mean (`float`, *optional*, defaults to -4.268): EAT's mean over AudioSet.
        std (`float`, *optional*, defaults to 4.569): EAT's standard deviation over AudioSet.

    Attributes:
        incomplete (`str`, defaults to `"error"`), max_seconds (`float`, defaults to 10800): How the processor, the
            collators and the commands read files with it, as in [`load_audio`]. Set them, such as
            `processor.feature_extractor.incomplete = "keep"`; they are not saved.

    Raises:
        ValueError: Another sampling rate than 16000.
    """

    model_input_names = ["input_features"]

    def __init__(
        self,
        feature_size=128,
        sampling_rate=SAMPLING_RATE,
        padding_value=0.0,
        max_frames=1024,
        mean=-4.268,
        std=4.569,
        **kwargs,
    ):
        for name, size in (("feature_size", feature_size), ("max_frames", max_frames)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(
                    f"{name}: got {size!r}, expected a positive integer; from_pretrained loads a saved one."
                )
        if sampling_rate != SAMPLING_RATE:
            raise ValueError(f"sampling_rate: got {sampling_rate!r}, expected {SAMPLING_RATE}, as in EAT.")
        kwargs.setdefault("return_attention_mask", False)
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.max_frames = max_frames
        self.mean = mean
        self.std = std
        self.incomplete = "error"
        self.max_seconds: float | None = MAX_SECONDS

    def to_dict(self) -> dict[str, Any]:
        """What is saved: not how files are read."""
        return {key: value for key, value in super().to_dict().items() if key not in ("incomplete", "max_seconds")}

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        overflow: str = "error",
        device: str | torch.device = "cpu",
    ) -> BatchFeature:
        """
        Args:
            raw_speech: One mono waveform `[T]` (array, tensor or list of numbers), or a batch: a list of waveforms or
                an array `[B, T]`. Types as in [`load_audio`].
            sampling_rate (`int`): Rate of the waveforms in Hz, which must be 16000; [`load_audio`] and the processor
                resample.
            return_tensors (`str`, *optional*): `"pt"`, `"np"`, or `None` for a list of arrays.
            overflow (`str`, *optional*, defaults to `"error"`): For a clip of more than `max_frames` frames:

                - `"error"`: raise a `ValueError`;
                - `"truncate"`: use its first `max_frames` frames, with one warning that counts such clips;
                - `"window"`: split it into consecutive windows of `max_frames` frames (10.24 s), each computed like
                  a clip of its own. Window k starts at sample k * 163,840 and has up to 164,080 samples: the last
                  frame extends 240 samples into the next window, so that no frame is lost. A tail under 25 ms, which
                  is less than a frame, is dropped.
            device (`str`, *optional*, defaults to `"cpu"`): Where to compute; with `"pt"` the result stays there.

        Returns:
            [`BatchFeature`] with `input_features` `[B, max_frames, feature_size]`, float32, and with
            `overflow="window"` also `num_windows`, the number of windows of each clip (B is then their sum).

        Raises:
            TypeError: A path, a file's content or a row instead of samples.
            ValueError: A missing or different rate; a clip under 25 ms, not finite, not mono, or too long.
        """
        check_waveforms(raw_speech)
        if sampling_rate != self.sampling_rate:
            raise ValueError(
                f"sampling_rate: got {sampling_rate!r}, expected {self.sampling_rate}; resample with "
                "load_audio(waveform, sampling_rate=...), or call the processor, which resamples."
            )
        check_choice("return_tensors", return_tensors, (None, "pt", "np"))
        if isinstance(raw_speech, (list, tuple)):
            waveforms = [raw_speech] if raw_speech and isinstance(raw_speech[0], Real) else list(raw_speech)
        else:
            waveforms = list(raw_speech) if raw_speech.ndim == 2 else [raw_speech]
        if not waveforms:
            raise ValueError("raw_speech: got an empty batch, expected at least one waveform.")
        features, num_windows, num_long = self.extract(waveforms, overflow, device)
        self.warn_truncated(overflow, num_long, len(waveforms))
        data = {"input_features": as_tensors(features, return_tensors)}
        if overflow == "window":
            data["num_windows"] = as_tensors(torch.tensor(num_windows), return_tensors)
        return BatchFeature(data)

    def num_frames(self, num_samples: int) -> int:
        """Number of frames of `num_samples` samples at 16 kHz: none under 400, 998 for ten seconds."""
        return max(0, 1 + (num_samples - FRAME_LENGTH) // FRAME_SHIFT)

    def reading(self, overflow: str) -> dict[str, Any]:
        """The options of [`load_audio`] for clips that are treated by `overflow`. With `"truncate"` decoding stops one
        frame behind what is used, so that a longer clip is seen to be longer."""
        options: dict[str, Any] = {"incomplete": self.incomplete, "max_seconds": self.max_seconds}
        if overflow == "truncate":
            options["duration"] = (self.max_frames * FRAME_SHIFT + FRAME_LENGTH) / SAMPLING_RATE
        return options

    def fetch_audio(self, audio_url_or_urls: Any, sampling_rate: int | None = None) -> Any:
        """Reads files for transformers' pipelines, never URLs; anything else is returned unchanged.

        Args:
            audio_url_or_urls: A path, or a list of paths; the name is transformers'.
            sampling_rate (`int`, *optional*): Unused; the result is always at 16 kHz.

        Returns:
            `dict`: `{"array", "sampling_rate"}` for the processor, or a list of them.
        """
        if isinstance(audio_url_or_urls, (list, tuple)):
            return [self.fetch_audio(item) for item in audio_url_or_urls]
        if isinstance(audio_url_or_urls, str):
            waveform = load_audio(audio_url_or_urls, **self.reading("error"))
            return {"array": waveform, "sampling_rate": self.sampling_rate}
        return audio_url_or_urls

    @torch.no_grad()
    def extract(self, waveforms, overflow, device) -> tuple[torch.Tensor, list[int], int]:
        """Log-mel of every window, number of windows of every clip, and number of clips with too many frames."""
        check_choice("overflow", overflow, OVERFLOWS)
        hop, length = self.max_frames * FRAME_SHIFT, (self.max_frames - 1) * FRAME_SHIFT + FRAME_LENGTH
        windows, num_windows, num_long = [], [], 0
        for waveform in waveforms:
            waveform = self._checked(waveform).to(device)
            num_frames = self.num_frames(waveform.shape[0])
            num_long += num_frames > self.max_frames
            if num_frames > self.max_frames and overflow == "error":
                raise ValueError(
                    f"overflow: a clip of {waveform.shape[0] / self.sampling_rate:.2f} s has {num_frames} frames, "
                    f"expected at most {self.max_frames} ({hop / self.sampling_rate:.2f} s); pass "
                    "overflow='truncate' for its beginning or overflow='window' for the whole clip."
                )
            if overflow == "window":
                starts = range(0, math.ceil(num_frames / self.max_frames) * hop, hop)
                parts = [waveform[start : start + length] for start in starts]
                windows += [part - part.mean() for part in parts]
                num_windows.append(len(parts))
            else:
                windows.append((waveform - waveform.mean())[:length])
                num_windows.append(1)
        shape = (len(windows), self.max_frames, self.feature_size)
        features = torch.empty(shape, dtype=torch.float32, device=device)
        # One clip at a time fits into the cache of a CPU; a GPU needs more work at once.
        step = 1 if features.device.type == "cpu" else 64
        with torch.autocast(features.device.type, enabled=False):
            for begin in range(0, len(windows), step):
                frames = [window.unfold(0, FRAME_LENGTH, FRAME_SHIFT) for window in windows[begin : begin + step]]
                log_mel = fbank(torch.cat(frames) if len(frames) > 1 else frames[0], self.feature_size)
                for feature, part in zip(features[begin:], log_mel.split([len(frame) for frame in frames])):
                    feature[: len(part)] = part
                    feature[len(part) :] = self.padding_value
                    feature.sub_(self.mean).div_(2 * self.std)
        return features, num_windows, num_long

    @torch.no_grad()
    def log_mel(self, waveforms: torch.Tensor, num_samples: torch.Tensor) -> torch.Tensor:
        """Features of a padded batch of waveforms, computed on their device, without waiting for it.

        Args:
            waveforms (`torch.Tensor` of shape `[B, samples]`): Float32, 16 kHz, at least 400 samples, right-padded;
                each clip comes from [`~SamFeatureExtractor.center`].
            num_samples (`torch.Tensor` of shape `[B]`): Samples of each clip, without padding.

        Returns:
            `torch.Tensor` of shape `[B, max_frames, feature_size]`, float32: `input_features`.
        """
        frames = waveforms.unfold(1, FRAME_LENGTH, FRAME_SHIFT)[:, : self.max_frames]
        features = waveforms.new_full((len(waveforms), self.max_frames, self.feature_size), self.padding_value)
        step = (
            1 if waveforms.device.type == "cpu" else 16
        )  # for the cache of a CPU, as in extract, and for the memory of a GPU
        with torch.autocast(waveforms.device.type, enabled=False):
            for part, result in zip(frames.split(step), features.split(step)):
                result[:, : part.shape[1]] = fbank(part.flatten(0, 1), self.feature_size).view(
                    *part.shape[:2], self.feature_size
                )
        num_frames = 1 + (num_samples - FRAME_LENGTH).div(FRAME_SHIFT, rounding_mode="floor")
        filled = torch.arange(self.max_frames, device=waveforms.device) >= num_frames.unsqueeze(1)
        features.masked_fill_(filled.unsqueeze(2), self.padding_value)
        return features.sub_(self.mean).div_(2 * self.std)

    def center(self, waveform: Any) -> tuple[torch.Tensor, bool]:
        """Subtracts the mean of a clip and cuts it to `max_frames` frames, for [`~SamFeatureExtractor.log_mel`].

        Args:
            waveform: Mono, 16 kHz, `[T]`, as in the call.

        Returns:
            `torch.Tensor` `[up to 164,080]`, float32, and whether it was cut.
        """
        samples = self._checked(waveform)
        length = (self.max_frames - 1) * FRAME_SHIFT + FRAME_LENGTH
        return (samples - samples.mean())[:length], self.num_frames(samples.shape[0]) > self.max_frames

    def warn_truncated(self, overflow: str, num_long: int, num_clips: int) -> None:
        if overflow == "truncate" and num_long:
            seconds = self.max_frames * FRAME_SHIFT / SAMPLING_RATE
            logger.warning(
                f"{num_long} of {num_clips} clips were longer than {seconds:.2f} s and have been truncated."
            )

    def _checked(self, waveform: Any) -> torch.Tensor:
        if isinstance(waveform, torch.Tensor) and waveform.dtype == torch.float32 and waveform.ndim == 1:
            samples = waveform  # remains on its device
        else:
            if np.ndim(waveform) != 1:
                raise ValueError(
                    f"raw_speech: got {_describe(waveform)}, expected mono waveforms [samples]; average the channels "
                    "with load_audio."
                )
            array = np.ascontiguousarray(_as_floats(waveform, _describe(waveform)), dtype=np.float32)
            samples = torch.from_numpy(array if array.flags.writeable else array.copy())
        if samples.shape[0] < FRAME_LENGTH:
            raise ValueError(
                f"raw_speech: got {samples.shape[0]} samples, expected at least {FRAME_LENGTH}, one frame of 25 ms."
            )
        check_samples(samples, MAX_AMPLITUDE)
        return samples


def read_windows(source: Any, feature_extractor: SamFeatureExtractor) -> tuple[list[dict[str, float]], torch.Tensor]:
    """Reads one clip as windows of up to 10.24 s.

    Args:
        source: A source of [`load_audio`] that needs no rate.
        feature_extractor ([`SamFeatureExtractor`]): Splits the clip, by `overflow="window"`, and says how it is read:
            up to `max_seconds`, 3 hours.

    Returns:
        `list[dict]`: `start` and `end` of each window and `seconds`, the length of the clip, all in seconds;
        `torch.Tensor` `[windows, 1024, 128]`: their `input_features`. A tail under 25 ms is dropped.

    Raises:
        FileNotFoundError, ValueError, TypeError: As in [`load_audio`].
    """
    waveform = load_audio(source, **feature_extractor.reading("window"))
    features = feature_extractor(waveform, SAMPLING_RATE, return_tensors="pt", overflow="window")["input_features"]
    length = feature_extractor.max_frames * FRAME_SHIFT / SAMPLING_RATE  # 10.24 s
    seconds = len(waveform) / SAMPLING_RATE
    starts = [index * length for index in range(len(features))]
    return [{"start": start, "end": min(start + length, seconds), "seconds": seconds} for start in starts], features


def check_choice(name: str, value: Any, choices: tuple) -> None:
    """Raises a `ValueError` if `value`, the argument `name`, is none of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, choices))}.")


def as_tensors(tensor: torch.Tensor, return_tensors: str | None) -> Any:
    """Converts `tensor` by `return_tensors`: `"pt"`, `"np"`, or `None` for lists."""
    if return_tensors == "pt":
        return tensor
    array = tensor.cpu().numpy()
    return array if return_tensors == "np" else (list(array) if array.ndim > 1 else array.tolist())


SamFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
