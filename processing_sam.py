"""From sound and text to what SAM reads: audio files, EAT's log-mel, the prompt, the audio slots, the labels.

Audio is read by [`load_audio`], turned into log-mel by [`SamFeatureExtractor`], joined with text by
[`SamAudioLanguageProcessor`] (alias `SamProcessor`) and batched for training by [`SamDataCollator`].
"""

import importlib
import io
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from numbers import Real
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from transformers import AutoFeatureExtractor, AutoProcessor, BatchFeature, ProcessorMixin, SequenceFeatureExtractor
from transformers.utils import logging

try:
    from .configuration_sam import AUTO_MAP, SamConfig, audio_slot_pattern
except ImportError:
    from configuration_sam import AUTO_MAP, SamConfig, audio_slot_pattern

logger = logging.get_logger(__name__)

SAMPLING_RATE = 16000  # Hz
FRAME_LENGTH = 400  # samples, 25 ms
FRAME_SHIFT = 160  # samples, 10 ms
FFT_LENGTH = 512
LOG_FLOOR = 1.1920928955078125e-07  # float32's epsilon, as in Kaldi

MAX_CHANNELS = 32
SAMPLING_RATES = (1000, 768000)  # Hz, what a file or an array may have
# What FFmpeg may see: containers of sound and film, none a playlist, which would open other files or the network.
CONTAINER_START = re.compile(
    rb"....(ftyp|moov|mdat|wide|free|skip)|\x1aE\xdf\xa3|OggS|RIFF|FORM|fLaC|ID3|\xff[\xe0-\xff]|0&\xb2u|#!AMR|FLV"
    rb"|caff|\x0bw|MAC |wvpk|\.RMF|\.snd|\x00\x00\x01\xba|G",
    re.DOTALL,
)
FFMPEG_FORMATS = "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,rm,w64,wav,wv"
MAX_AMPLITUDE = 100.0  # 40 dB over full scale: no sound, but integers given as floats

AUDIO_TOKEN = "<|audio|>"
SEPARATOR_TOKEN = "&&"
PROMPT_TEMPLATE = "### Instruction:\n{prompt}\n\n### Response:\n"
IGNORE_INDEX = -100
OVERFLOWS = ("error", "truncate", "window")
# Arguments of the processor's call that a chat may carry along.
CALL_OPTIONS = {"answer", "sampling_rate", "padding", "padding_side", "overflow", "train_on_prompt"}
CALL_OPTIONS |= {"pad_to_multiple_of", "device"}

# The text only: the processor adds the prompt template, so that a chat and a plain call give the same tokens.
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


# ---------------------------------------------------------------------------------------------------------------
# Reading audio
# ---------------------------------------------------------------------------------------------------------------


def load_audio(source: Any, sampling_rate: int | None = None) -> np.ndarray:
    """Reads one clip as a mono waveform at 16 kHz.

    Channels are averaged, other rates resampled (soxr, high quality). A file is decoded by libsndfile; what that
    cannot decode (m4a, webm) by torchcodec if it is installed, else by an `ffmpeg` on the PATH.

    Args:
        source: One of

            - a path (`str` or `os.PathLike`), the file's content (`bytes`) or an open binary file;
            - an array or tensor of samples, or a list of numbers: `[T]`, or two axes of which the shorter is the
              channels, at most 32 (so both soundfile's `[T, C]` and torchcodec's `[C, T]`). Floating point is taken
              as it is, about [-1, 1]; int16, int32 and uint8 are scaled to that;
            - a row of a `datasets` Audio column: `{"array", "sampling_rate"}` or `{"bytes", "path"}`, or its decoder
              object (anything with `get_all_samples()`).
        sampling_rate (`int`, *optional*): Rate of an array in Hz, required for one. Files, `datasets` rows and
            decoders know their own.

    Returns:
        `np.ndarray`: `[T]`, float32, at least 400 samples.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A URL (nothing is fetched), audio that cannot be decoded, is empty, under 25 ms, not finite or
            of a wrong shape, an array without a rate.
        TypeError: Not a kind of source listed here.
    """
    name = _describe(source)
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
        waveform, rate = _decode(_checked_path(source), name)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        waveform, rate = _decode(bytes(source), name)
    elif hasattr(source, "get_all_samples"):
        samples = source.get_all_samples()
        waveform, rate = _to_mono(samples.data, name), samples.sample_rate
    elif isinstance(source, (np.ndarray, torch.Tensor, list, tuple)):
        if sampling_rate is None:
            raise ValueError(
                f"sampling_rate: got None with {name}, expected its rate in Hz; pass sampling_rate=..., or the "
                "file's path instead of its samples."
            )
        waveform, rate = _to_mono(source, name), sampling_rate
    elif hasattr(source, "read"):
        content = source.read()
        if not isinstance(content, bytes):
            raise ValueError(f"audio: got {name} that reads text, expected one opened in binary mode ('rb').")
        waveform, rate = _decode(content, name)
    else:
        raise TypeError(
            f"audio: got {name}, expected a path, bytes, a binary file, an array, a tensor or a datasets row."
        )
    rate = _checked_rate(rate, name)
    peak = float(np.abs(waveform).max(initial=0.0))
    if not math.isfinite(peak):
        raise ValueError(f"audio: {name} has samples that are not finite (NaN or infinity).")
    if peak > MAX_AMPLITUDE:
        raise ValueError(
            f"audio: {name} has samples up to {peak:.6g}, expected about [-1, 1]; divide 16-bit samples by 32768, or "
            "pass them as int16."
        )
    if rate != SAMPLING_RATE and waveform.size:
        waveform = soxr.resample(waveform, rate, SAMPLING_RATE, quality="HQ")
    if waveform.shape[0] < FRAME_LENGTH:
        raise ValueError(
            f"audio: {name} has {waveform.shape[0]} samples at {SAMPLING_RATE} Hz, expected at least {FRAME_LENGTH} "
            "(25 ms)."
        )
    return np.ascontiguousarray(waveform, dtype=np.float32)


def _describe(source: Any) -> str:
    """How an error message calls a clip."""
    if isinstance(source, (str, os.PathLike)):
        return repr(os.fspath(source))
    if isinstance(source, dict):
        return repr(source["path"]) if source.get("path") else f"a dict with the keys {sorted(map(str, source))}"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes"
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return f"an array of shape {tuple(source.shape)} and type {source.dtype}"
    return f"an object of type {type(source).__name__}"


def _checked_path(path: str | os.PathLike) -> str:
    path = os.fspath(path)
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:(//|:)|data:", path):
        raise ValueError(f"audio: got the URL {path[:200]!r}; nothing is fetched, download it and pass the file.")
    if not os.path.exists(path):
        raise FileNotFoundError(f"audio: there is no file {path!r}.")
    if not os.path.isfile(path):
        raise ValueError(f"audio: {path!r} is not a file.")
    return path


def _checked_rate(rate: Any, name: str) -> int:
    low, high = SAMPLING_RATES
    number = float(rate) if isinstance(rate, (int, float, np.number)) and not isinstance(rate, bool) else math.nan
    if not low <= number <= high or number != int(number):
        raise ValueError(f"sampling_rate: got {rate!r} for {name}, expected an integer from {low} to {high} Hz.")
    return int(number)


def _decode(file: str | bytes, name: str) -> tuple[np.ndarray, int]:
    """Decodes a file, given by its path or content, into mono samples and their rate."""
    if not (os.path.getsize(file) if isinstance(file, str) else len(file)):
        raise ValueError(f"audio: {name} is empty.")
    try:
        return _decode_soundfile(file, name)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: headerless .raw, by the file's name
        reasons = [f"libsndfile: {getattr(error, 'error_string', error)}"]
    if isinstance(file, str):
        with open(file, "rb") as handle:
            start = handle.read(16)
    else:
        start = file[:16]
    if CONTAINER_START.match(start) is None:
        raise ValueError(f"audio: {name} is no audio file that is known ({reasons[0]}); it begins with {start!r}.")
    try:
        decoder = importlib.import_module("torchcodec.decoders").AudioDecoder
    except Exception as error:  # a missing FFmpeg library raises RuntimeError, OSError or ImportError
        reasons.append(f"torchcodec: cannot be imported ({type(error).__name__})")
    else:
        try:
            samples = decoder(file).get_all_samples()
            return _to_mono(samples.data, name), _checked_rate(samples.sample_rate, name)
        except (RuntimeError, ValueError) as error:
            reasons.append(f"torchcodec: {error}")
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        reasons.append("ffmpeg: not on the PATH")
    else:
        try:
            return _decode_ffmpeg(ffmpeg, file, name)
        except (soundfile.SoundFileError, subprocess.SubprocessError, OSError) as error:
            stderr = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()
            reasons.append(f"ffmpeg: {stderr.splitlines()[-1] if stderr else getattr(error, 'error_string', error)}")
    raise ValueError(
        f"audio: {name} cannot be decoded ({'; '.join(reasons)}). If it is sound, such as m4a or webm, install "
        "torchcodec or put ffmpeg on the PATH, or convert it to WAV or FLAC."
    )


def _decode_soundfile(file: str | bytes, name: str) -> tuple[np.ndarray, int]:
    with soundfile.SoundFile(io.BytesIO(file) if isinstance(file, bytes) else file) as sound:
        rate = _checked_rate(sound.samplerate, name)
        if sound.channels > MAX_CHANNELS:
            raise ValueError(f"audio: {name} has {sound.channels} channels, expected at most {MAX_CHANNELS}.")
        # In blocks, since the number of frames in a header is not to be believed when memory is allocated by it.
        blocks = []
        while len(block := sound.read(1 << 18, dtype="float32", always_2d=True)):
            blocks.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1))
    return (np.concatenate(blocks) if blocks else np.empty(0, np.float32)), rate


def _decode_ffmpeg(ffmpeg: str, file: str | bytes, name: str) -> tuple[np.ndarray, int]:
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(file, bytes):  # by a file, for mp4's index may stand at its end
            path = os.path.join(folder, "input")
            with open(path, "wb") as handle:
                handle.write(file)
        else:
            path = os.path.abspath(file)
        command = [ffmpeg, "-nostdin", "-hide_banner", "-loglevel", "error"]
        # No network, and no playlist, which would open other files.
        command += ["-protocol_whitelist", "file", "-format_whitelist", FFMPEG_FORMATS]
        output = os.path.join(folder, "output.w64")
        command += ["-i", "file:" + path, "-map", "0:a:0", "-c:a", "pcm_f32le", "-f", "w64", "file:" + output]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=600)
        return _decode_soundfile(output, name)


def _to_mono(samples: Any, name: str) -> np.ndarray:
    """Samples of any supported kind to float32 `[T]`."""
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
        samples = samples.mean(axis=0 if samples.shape[0] < samples.shape[1] else 1)
    if samples.ndim != 1:
        raise ValueError(
            f"audio: {name} has the shape {samples.shape}, expected [samples], or [channels, samples] or "
            f"[samples, channels] with at most {MAX_CHANNELS} channels and more samples than channels."
        )
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, and is refused as such
        return samples.astype(np.float32, copy=False)


# ---------------------------------------------------------------------------------------------------------------
# Log-mel
# ---------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _mel_banks(num_mel_bins: int) -> torch.Tensor:
    """Kaldi's triangular filters from 20 Hz to 8 kHz, `[257, num_mel_bins]`, rounded as torchaudio rounds them."""
    low, high = (1127.0 * math.log(1.0 + frequency / 700.0) for frequency in (20.0, SAMPLING_RATE / 2))
    delta = (high - low) / (num_mel_bins + 1)
    index = torch.arange(num_mel_bins, dtype=torch.float32).unsqueeze(1)
    left, center, right = low + index * delta, low + (index + 1.0) * delta, low + (index + 2.0) * delta
    frequencies = SAMPLING_RATE / FFT_LENGTH * torch.arange(FFT_LENGTH // 2, dtype=torch.float32)
    mel = 1127.0 * (1.0 + frequencies / 700.0).log()
    banks = torch.minimum((mel - left) / (center - left), (right - mel) / (right - center)).clamp(min=0.0)
    return torch.nn.functional.pad(banks, (0, 1)).T.contiguous()  # Kaldi leaves the bin of 8 kHz out


def _fbank(frames: torch.Tensor, num_mel_bins: int) -> torch.Tensor:
    """Kaldi's log-mel of frames `[N, 400]`, as `[N, num_mel_bins]`.

    The order of operations is torchaudio's, in float32: near the floor its rounding is part of the result.
    """
    banks = _mel_banks(num_mel_bins).to(frames.device)
    window = torch.hann_window(FRAME_LENGTH, periodic=False, dtype=torch.float32, device=frames.device)
    frames = frames - frames.mean(dim=1, keepdim=True)
    padded = frames.new_zeros(frames.shape[0], FFT_LENGTH)
    emphasized = padded[:, :FRAME_LENGTH]
    torch.mul(frames[:, :1], 0.97, out=emphasized[:, :1])  # the first sample stands for the one before it
    torch.mul(frames[:, :-1], 0.97, out=emphasized[:, 1:])
    torch.sub(frames, emphasized, out=emphasized).mul_(window)
    spectrum = torch.fft.rfft(padded)
    power = spectrum.real.square() + spectrum.imag.square()  # [N, 257]
    if power.device.type == "cuda":
        # TF32, which training often allows, would spoil the sum over bins: float64 is never replaced by it.
        mel = (power.double() @ banks.double()).float()
    else:
        mel = power @ banks
    return mel.clamp_(min=LOG_FLOOR).log_()


class SamFeatureExtractor(SequenceFeatureExtractor):
    """EAT's preprocessing: 16 kHz waveforms to normalised log-mel spectrograms of 1,024 frames (paper, section 2.1).

    The clip's mean is removed; Kaldi's filter bank follows (25 ms frames every 10 ms, Hann, 128 mel bins from 20 Hz
    to 8 kHz, natural logarithm); the end is filled with zeros; all is normalised by `(x - mean) / (2 * std)`, so that
    a filled frame is 0.46706 with the defaults.

    Args:
        feature_size (`int`, *optional*, defaults to 128): Mel bins.
        sampling_rate (`int`, *optional*, defaults to 16000): Hz; the frames' length is fixed for this one.
        padding_value (`float`, *optional*, defaults to 0.0): What fills the end, before normalisation.
        max_frames (`int`, *optional*, defaults to 1024): Frames of the result, 10.24 s.
        mean (`float`, *optional*, defaults to -4.268): EAT's mean over AudioSet.
        std (`float`, *optional*, defaults to 4.569): EAT's standard deviation over AudioSet.

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
        if sampling_rate != SAMPLING_RATE:
            raise ValueError(f"sampling_rate: got {sampling_rate!r}, expected {SAMPLING_RATE}, EAT's.")
        kwargs.setdefault("return_attention_mask", False)
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.max_frames = max_frames
        self.mean = mean
        self.std = std

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
            sampling_rate (`int`): The waveforms' rate in Hz, which must be 16000: [`load_audio`] and the processor
                resample, this does not.
            return_tensors (`str`, *optional*): `"pt"`, `"np"`, or `None` for a list of arrays.
            overflow (`str`, *optional*, defaults to `"error"`): What becomes of a clip of more than `max_frames`
                frames:

                - `"error"`: a `ValueError`;
                - `"truncate"`: its first `max_frames` frames, with one warning that counts such clips;
                - `"window"`: its frames in consecutive windows of `max_frames` (10.24 s), each computed as if it had
                  been cut out and given alone. Window k starts at sample k * 163,840 and has up to 164,080 samples:
                  the last frame reaches 240 samples into the next window, so that no frame is lost. A rest under
                  25 ms, which makes no frame, is dropped.
            device (`str`, *optional*, defaults to `"cpu"`): Where to compute; with `"pt"` the result stays there.

        Returns:
            [`BatchFeature`] with `input_features` `[B, max_frames, feature_size]`, float32, and with
            `overflow="window"` also `num_windows`, the windows of each clip (B is then their sum).

        Raises:
            ValueError: A missing or different rate; a clip under 25 ms, not finite, not mono, or too long.
        """
        if sampling_rate != self.sampling_rate:
            raise ValueError(
                f"sampling_rate: got {sampling_rate!r}, expected {self.sampling_rate}; resample first, with "
                "load_audio(waveform, sampling_rate=...), or call the processor, which does."
            )
        _check_choice("return_tensors", return_tensors, (None, "pt", "np"))
        if isinstance(raw_speech, (list, tuple)):
            waveforms = [raw_speech] if raw_speech and isinstance(raw_speech[0], Real) else list(raw_speech)
        else:
            waveforms = list(raw_speech) if raw_speech.ndim == 2 else [raw_speech]
        if not waveforms:
            raise ValueError("raw_speech: got an empty batch, expected at least one waveform.")
        features, num_windows, num_long = self._extract(waveforms, overflow, device)
        _warn_truncated(overflow, num_long, len(waveforms), self)
        data = {"input_features": _as_tensors(features, return_tensors)}
        if overflow == "window":
            data["num_windows"] = _as_tensors(torch.tensor(num_windows), return_tensors)
        return BatchFeature(data)

    def num_frames(self, num_samples: int) -> int:
        """Frames of a clip of so many samples at 16 kHz: none under 400, 998 for ten seconds."""
        return max(0, 1 + (num_samples - FRAME_LENGTH) // FRAME_SHIFT)

    def fetch_audio(self, audio_url_or_urls: Any, sampling_rate: int | None = None) -> Any:
        """Reads files for transformers' pipelines, without fetching URLs; anything else comes back as it is.

        Args:
            audio_url_or_urls: A path, or a list of paths; transformers names it so.
            sampling_rate (`int`, *optional*): Without effect, the result is always at 16 kHz.

        Returns:
            `dict`: `{"array", "sampling_rate"}`, which the processor takes, or a list of them.
        """
        if isinstance(audio_url_or_urls, (list, tuple)):
            return [self.fetch_audio(item) for item in audio_url_or_urls]
        if isinstance(audio_url_or_urls, str):
            return {"array": load_audio(audio_url_or_urls), "sampling_rate": self.sampling_rate}
        return audio_url_or_urls

    @torch.no_grad()
    def _extract(self, waveforms, overflow, device) -> tuple[torch.Tensor, list[int], int]:
        """Log-mel of every window, windows of every clip, and the number of clips of too many frames."""
        _check_choice("overflow", overflow, OVERFLOWS)
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
                    "overflow='truncate' for its beginning or overflow='window' for all of it."
                )
            if overflow == "window":
                starts = range(0, math.ceil(num_frames / self.max_frames) * hop, hop)
                parts = [waveform[start : start + length] for start in starts]
                windows += [part - part.mean() for part in parts]
                num_windows.append(len(parts))
            else:
                windows.append((waveform - waveform.mean())[:length])  # the mean is the whole clip's, as EAT's
                num_windows.append(1)
        shape = (len(windows), self.max_frames, self.feature_size)
        features = torch.empty(shape, dtype=torch.float32, device=device)
        # One clip at a time fits a CPU's cache; a GPU wants more work at once.
        step = 1 if features.device.type == "cpu" else 64
        with torch.autocast(features.device.type, enabled=False):
            for begin in range(0, len(windows), step):
                frames = [window.unfold(0, FRAME_LENGTH, FRAME_SHIFT) for window in windows[begin : begin + step]]
                log_mel = _fbank(torch.cat(frames) if len(frames) > 1 else frames[0], self.feature_size)
                for feature, part in zip(features[begin:], log_mel.split([len(frame) for frame in frames])):
                    feature[: len(part)] = part
                    feature[len(part) :] = self.padding_value
                    feature.sub_(self.mean).div_(2 * self.std)
        return features, num_windows, num_long

    def _checked(self, waveform: Any) -> torch.Tensor:
        if isinstance(waveform, torch.Tensor) and waveform.dtype == torch.float32 and waveform.ndim == 1:
            samples = waveform  # stays on its device
        else:
            if np.ndim(waveform) != 1:
                raise ValueError(
                    f"raw_speech: got {_describe(waveform)}, expected mono waveforms [samples]; average the channels "
                    "first, with load_audio."
                )
            array = np.ascontiguousarray(_to_mono(waveform, _describe(waveform)))
            samples = torch.from_numpy(array if array.flags.writeable else array.copy())
        if samples.shape[0] < FRAME_LENGTH:
            raise ValueError(
                f"raw_speech: got {samples.shape[0]} samples, expected at least {FRAME_LENGTH}, one frame of 25 ms."
            )
        if not torch.isfinite(samples.mean()):  # one sample that is not finite makes the mean so
            raise ValueError("raw_speech: got samples that are not finite (NaN or infinity).")
        return samples


def _check_choice(name: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, choices))}.")


def _warn_truncated(overflow: str, num_long: int, num_clips: int, extractor: SamFeatureExtractor) -> None:
    if overflow == "truncate" and num_long:
        seconds = extractor.max_frames * FRAME_SHIFT / SAMPLING_RATE
        logger.warning(f"{num_long} of {num_clips} clips were longer than {seconds:.2f} s and have been truncated.")


def _as_tensors(tensor: torch.Tensor, return_tensors: str | None) -> Any:
    if return_tensors == "pt":
        return tensor
    array = tensor.cpu().numpy()
    return array if return_tensors == "np" else (list(array) if array.ndim > 1 else array.tolist())


# ---------------------------------------------------------------------------------------------------------------
# Text and audio together
# ---------------------------------------------------------------------------------------------------------------


class SamAudioLanguageProcessor(ProcessorMixin):
    """Turns text and audio into the inputs of [`SamForConditionalGeneration`] (paper, section 2.3).

    A sequence is `[audio slots] "### Instruction:\\n{prompt}\\n\\n### Response:\\n" [answer] <|endoftext|>`. The text
    given is the bare prompt. `<|audio|>` in it marks the place of a clip: at its beginning, the clip comes before the
    template, as in the paper; further on, the clip sits where it is written, within the instruction. Where a text has
    clips but no mark, they come first. Each mark becomes the connector's slots: 64, 576 or 520 tokens.

    Args:
        feature_extractor ([`SamFeatureExtractor`]): Waveform to log-mel.
        tokenizer (`PreTrainedTokenizerFast`): A tokenizer with an end-of-text token (`eos_token`) and, for the
            connectors with separators, `&&` as one token. `<|audio|>` is added to it if missing.
        connector (`str`, *optional*, defaults to `"concatenation"`): The model's connector.
        chat_template (`str`, *optional*): Jinja template; the default takes one message of the user, with its clips
            first.
        patch_size (`int`, *optional*, defaults to 16): The audio encoder's.

    Raises:
        ValueError: Unknown connector, no end-of-text token, `&&` is not one token where it is needed.
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
                "tokenizer: it has no end-of-text token, which ends every answer; set it, as in "
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
        """`<|audio|>`, the mark of a clip in a text."""
        return AUDIO_TOKEN

    @property
    def audio_token_id(self) -> int:
        """Id of `<|audio|>`, which holds the place of each audio feature."""
        return self.tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)

    @property
    def separator_token_id(self) -> int | None:
        """Id of `&&`, or `None` where the tokenizer has no such single token."""
        ids = self.tokenizer(SEPARATOR_TOKEN, add_special_tokens=False)["input_ids"]
        return ids[0] if len(ids) == 1 and ids[0] != self.tokenizer.unk_token_id else None

    @property
    def model_input_names(self) -> list[str]:
        """What the model's `forward` takes from here."""
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
            text (`str` or list of `str`, *optional*): The prompts. Without text only `input_features` come back.
            audio (*optional*): One clip, anything that [`load_audio`] reads; a list of clips, which go to the texts
                by the `<|audio|>` written in them, or one to each text; or a list with a list of clips (or one clip,
                or `None`) for each text.
            answer (`str` or list of `str`, *optional*): The truths to train on, one a text.
            sampling_rate (`int`, *optional*): Rate in Hz of clips given as arrays.
            padding (`bool` or `str`, *optional*, defaults to `True`): `True` (`"longest"`) or `False`
                (`"do_not_pad"`).
            padding_side (`str`, *optional*): `"left"` or `"right"`; by default right with answers, for training, and
                left without, for generation.
            return_tensors (`str`, *optional*): `"pt"`, `"np"`, or `None` for lists, without the batch axis where
                `text` is a single string (unless `overflow="window"`).
            overflow (`str`, *optional*, defaults to `"error"`): For clips of more than 10.24 s: `"error"`,
                `"truncate"` or `"window"` as in [`SamFeatureExtractor.__call__`]. With `"window"` a text is repeated,
                with its answer, for each window of its clip; `num_windows` counts the rows of each text.
            train_on_prompt (`bool`, *optional*, defaults to `False`): Also learn the prompt's text, as LTU does;
                never the audio slots.
            pad_to_multiple_of (`int`, *optional*): Round the padded length up to such a multiple.
            device (`str`, *optional*, defaults to `"cpu"`): Where to compute `input_features`.

        Returns:
            [`BatchFeature`] with `input_ids` and `attention_mask` `[B, L]`, `input_features`
            `[num_clips, 1024, 128]` in the order of the slots (absent without audio), `labels` `[B, L]` with answers
            (the answer and end of text; -100 elsewhere), `num_windows` `[texts]` with `overflow="window"`.

        Raises:
            ValueError: Texts, clips and answers that do not match, and what [`load_audio`] raises.
            TypeError: An unknown argument.
        """
        for name in ("images", "videos"):  # transformers' apply_chat_template passes them to every processor
            if kwargs.get(name, 0) is None:
                del kwargs[name]
        if kwargs:
            raise TypeError(f"SamProcessor got unexpected arguments: {', '.join(sorted(kwargs))}.")
        _check_choice("return_tensors", return_tensors, (None, "pt", "np"))
        if text is None:
            if audio is None or answer is not None:
                raise ValueError("text: got None, expected a prompt or a list of prompts.")
            clips = [audio] if _is_clip(audio) else list(audio)
            waveforms = [load_audio(clip, sampling_rate) for clip in clips]
            return self.feature_extractor(waveforms, SAMPLING_RATE, return_tensors, overflow, device)
        texts = _checked_texts("text", text)
        answers = None if answer is None else _checked_texts("answer", answer)
        if answers is not None and len(answers) != len(texts):
            raise ValueError(f"answer: got {len(answers)} for {len(texts)} texts, expected one for each.")
        for item in answers or []:
            if AUDIO_TOKEN in item:
                raise ValueError(f"answer: got {item!r}, expected text without {AUDIO_TOKEN}.")
        data, num_long = self._encode(
            texts, _assign_clips(texts, audio), answers, sampling_rate, overflow, train_on_prompt, device
        )
        num_clips = len(data["input_features"]) if "input_features" in data else 0
        _warn_truncated(overflow, num_long, num_clips, self.feature_extractor)
        self._pad(data, padding, padding_side or ("left" if answers is None else "right"), pad_to_multiple_of)
        single = isinstance(text, str) and overflow != "window"
        return _finish(data, return_tensors, single)

    def apply_chat_template(self, conversation, chat_template=None, tokenize=False, **kwargs):
        """transformers' `apply_chat_template`, with audio items read by [`load_audio`].

        An item is `{"type": "audio", "audio": ...}` or `{"type": "audio", "path": ...}`, where an array needs its
        rate, as `"sampling_rate"` in the item or as an argument. URLs are not fetched. With `tokenize=True,
        return_dict=True` the result is that of [`~SamAudioLanguageProcessor.__call__`], whose arguments may stand
        among these or in `processor_kwargs`.
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
            options["sampling_rate"] = SAMPLING_RATE  # what they are at now
        return super().apply_chat_template(
            conversation, chat_template, tokenize=tokenize, processor_kwargs=options, **kwargs
        )

    def _encode(
        self, texts, clips, answers, sampling_rate, overflow, train_on_prompt, device="cpu"
    ) -> tuple[dict[str, Any], int]:
        """Unpadded rows of ids and labels, the features, and the number of clips of too many frames."""
        _check_choice("overflow", overflow, OVERFLOWS)
        prompts = [_render(text, len(items)) for text, items in zip(texts, clips)]
        rows = [self._expand(ids) for ids in self._tokenize(prompts)]
        data: dict[str, Any] = {"input_ids": [ids for ids, _ in rows]}
        if answers is not None:
            endings = [ids + [self.tokenizer.eos_token_id] for ids in self._tokenize(answers)]
            data["input_ids"] = [ids + ending for (ids, _), ending in zip(rows, endings)]
            data["labels"] = [
                [token if train_on_prompt and not slot else IGNORE_INDEX for token, slot in zip(ids, slots)] + ending
                for (ids, slots), ending in zip(rows, endings)
            ]
        waveforms = [load_audio(clip, sampling_rate) for items in clips for clip in items]
        num_windows, num_long = [1] * len(texts), 0
        if waveforms:
            features, counts, num_long = self.feature_extractor._extract(waveforms, overflow, device)
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

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, padding=False, truncation=False)["input_ids"]

    def _expand(self, ids: list[int]) -> tuple[list[int], list[bool]]:
        """Puts the slots in the place of each `<|audio|>`, and says which tokens are slots."""
        audio_id = self.audio_token_id
        separator_id = self.separator_token_id
        slot_ids: list[Any] = [audio_id if is_audio else separator_id for is_audio in self.slot_pattern]
        expanded: list[int] = []
        slots: list[bool] = []
        for token in ids:
            expanded += slot_ids if token == audio_id else [token]
            slots += [True] * len(slot_ids) if token == audio_id else [False]
        return expanded, slots

    def _pad(self, data, padding, side, multiple) -> None:
        """Pads the rows of ids and labels in place, and adds the mask. Pads are known by it, never by their id."""
        _check_choice("padding", padding, (True, False, "longest", "do_not_pad"))
        _check_choice("padding_side", side, ("left", "right"))
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
    """A list or tuple, or what behaves like one, such as a column of `datasets`."""
    return isinstance(item, Sequence) and not isinstance(item, (str, bytes, bytearray, memoryview))


def _is_clip(item: Any) -> bool:
    """Whether `audio` is one clip rather than several: anything but a list, or a list of numbers."""
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


def _assign_clips(texts: list[str], audio: Any) -> list[list[Any]]:
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
    """The text before the answer, with one `<|audio|>` for each clip; those at the beginning precede the template."""
    leading = re.match(rf"(?:\s*{re.escape(AUDIO_TOKEN)})+\s*", text)
    prompt = text[leading.end() :] if leading else text
    count = leading.group().count(AUDIO_TOKEN) if leading else 0
    if AUDIO_TOKEN not in text:
        count = num_clips
    return AUDIO_TOKEN * count + PROMPT_TEMPLATE.format(prompt=prompt)


def _loaded_items(content: Any, sampling_rate: int | None) -> Any:
    """A chat message's content with its audio items read, so that transformers finds nothing to fetch."""
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
    """Tensors of what is rectangular; or lists, without the batch axis for a single text."""
    lists = [key for key in ("input_ids", "attention_mask", "labels", "num_windows") if key in data]
    if return_tensors is None:
        if single:
            data.update({key: data[key][0] for key in lists})
    else:
        if len({len(row) for row in data["input_ids"]}) > 1:
            raise ValueError(
                f"padding: got False with texts of different lengths and return_tensors={return_tensors!r}, expected "
                "True; or leave return_tensors out."
            )
        data.update({key: _as_tensors(torch.tensor(data[key]), return_tensors) for key in lists})
    if "input_features" in data:
        data["input_features"] = _as_tensors(data["input_features"], return_tensors)
    return BatchFeature({key: data[key] for key in (*lists, "input_features") if key in data})


# ---------------------------------------------------------------------------------------------------------------
# Batches for training
# ---------------------------------------------------------------------------------------------------------------


class SamDataCollator:
    """Makes training batches, right-padded, of raw rows or of rows that the processor has been mapped over.

    With raw rows Trainer needs `remove_unused_columns=False`, since it would take the audio away. Read an Audio
    column of `datasets` with `cast_column("audio", Audio(decode=False))`, which needs no torchcodec.

    Args:
        processor ([`SamAudioLanguageProcessor`]): The processor.
        audio_column (`str`, *optional*, defaults to `"audio"`): Clip of a raw row, anything that [`load_audio`] reads
            (arrays as `{"array", "sampling_rate"}`), a list of clips, or `None` for text only.
        prompt_column (`str`, *optional*, defaults to `"prompt"`): Prompt of a raw row.
        answer_column (`str`, *optional*, defaults to `"answer"`): Answer of a raw row.
        overflow (`str`, *optional*, defaults to `"truncate"`): `"truncate"` or `"error"`, for clips over 10.24 s.
        train_on_prompt (`bool`, *optional*, defaults to `False`): Also learn the prompt's text, as LTU does.
        pad_to_multiple_of (`int`, *optional*): Round the padded length up to such a multiple.
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
        _check_choice("overflow", overflow, ("truncate", "error"))
        self.processor = processor
        self.audio_column = audio_column
        self.prompt_column = prompt_column
        self.answer_column = answer_column
        self.overflow = overflow
        self.train_on_prompt = train_on_prompt
        self.pad_to_multiple_of = pad_to_multiple_of
        # Shared with the workers of a DataLoader, a place for each, so that they need no lock.
        self._truncated = torch.zeros(256, dtype=torch.int64).share_memory_()

    @property
    def num_truncated(self) -> int:
        """Clips that were longer than 10.24 s and have been cut, each time they were, in all workers."""
        return int(self._truncated.sum())

    def __call__(self, rows: list[dict[str, Any]]) -> BatchFeature:
        """
        Args:
            rows (`list[dict]`): All raw, or all made by the processor (`input_ids`, and where they have it
                `attention_mask`, `labels`, `input_features`).

        Returns:
            [`BatchFeature`] of tensors: `input_ids`, `attention_mask`, `labels`, `input_features`.

        Raises:
            ValueError: Columns are missing, or the audio slots and `input_features` of a row do not match.
        """
        rows = [dict(row) for row in rows]
        processed = all("input_ids" in row for row in rows)
        data = self._join(rows) if processed else self._process(rows)
        self.processor._pad(data, True, "right", self.pad_to_multiple_of)
        return _finish(data, "pt", single=False)

    def _process(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        for name in (self.audio_column, self.prompt_column, self.answer_column):
            if not all(name in row for row in rows):
                raise ValueError(
                    f"The column {name!r} is missing, got {sorted({key for row in rows for key in row})}. If the "
                    "dataset has it, Trainer has removed it, as remove_unused_columns=True removes the audio and all "
                    "else that forward() does not take: pass TrainingArguments(remove_unused_columns=False). If it "
                    "has another name, pass audio_column, prompt_column or answer_column; rows without audio have "
                    "None there."
                )
        texts = _checked_texts(self.prompt_column, [row[self.prompt_column] for row in rows])
        answers = _checked_texts(self.answer_column, [row[self.answer_column] for row in rows])
        audio = [
            [row[self.audio_column]] if _is_clip(row[self.audio_column]) else row[self.audio_column] for row in rows
        ]
        audio = [[clip for clip in clips if clip is not None] for clips in audio]
        data, num_long = self.processor._encode(
            texts, _assign_clips(texts, audio), answers, None, self.overflow, self.train_on_prompt
        )
        if num_long:
            if not self.num_truncated:
                logger.warning("Clips over 10.24 s are truncated; the collator's num_truncated counts them.")
            worker = torch.utils.data.get_worker_info()
            self._truncated[(0 if worker is None else worker.id + 1) % len(self._truncated)] += num_long
        return data

    def _join(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        with_labels = [row.get("labels") is not None for row in rows]
        if any(with_labels) and not all(with_labels):
            raise ValueError("labels: some rows have them and some do not, expected all or none.")
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
                    f"{found / expected:g} ({expected} slots a clip); if the rows had them, check that nothing (such "
                    "as Trainer's remove_unused_columns) has removed them."
                )
            features.append(clips)
        if sum(map(len, features)):
            data["input_features"] = torch.cat(features)
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
        return features.float().reshape(-1, *shape)


SamFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
SamAudioLanguageProcessor.register_for_auto_class("AutoProcessor")
AutoFeatureExtractor.register(SamConfig, SamFeatureExtractor, exist_ok=True)
AutoProcessor.register(SamConfig, SamAudioLanguageProcessor, exist_ok=True)

__all__ = ["SamAudioLanguageProcessor", "SamDataCollator", "SamFeatureExtractor", "SamProcessor", "load_audio"]
