"""The commands: `sam-alm describe`, `sam-alm convert`, `sam-alm env` (the same as `python -m sam_alm …`).

What is heavy (torch, transformers) is imported by the command that needs it, so that `--help` and wrong usage
answer at once.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sam_lab.common.files import AUDIO_SUFFIXES
from sam_lab.common.prompts import DEFAULT_PROMPT

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
BATCH_SIZE = 8  # windows that go through the model together
DTYPES = ("auto", "float32", "bfloat16", "float16")
PACKAGES = (
    "torch transformers accelerate peft datasets tokenizers huggingface-hub numpy soundfile soxr "
    "mamba-ssm causal-conv1d flash-attn triton torchcodec"
).split()


class CommandError(Exception):
    """What a command cannot do, in words for its user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv (`list[str]`, *optional*): The arguments; those of the process by default.

    Returns:
        `int`: The exit status: 0, or 1 where something could not be done (said on stderr).

    Raises:
        SystemExit: Wrong usage (status 2), `--help` and `--version` (status 0).
    """
    arguments = _parser().parse_args(argv)
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="surrogateescape")  # a file name need not be text
        status = arguments.command(arguments)
        sys.stdout.flush()
        return status
    except CommandError as error:
        print(f"sam-alm: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `sam-alm describe … | head`: nobody reads on, which is no error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sam-alm", description="SAM, the Mamba-2 audio-language model.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", required=True, metavar="{describe,convert,env}")

    command = commands.add_parser(
        "describe",
        help="say what is heard in audio files",
        description="Prints one line a file: path, tab, text. A file of more than one window of 10.24 seconds gives a "
        "line a window: path, tab, start-end in seconds, tab, text.",
    )
    command.add_argument("audio", nargs="*", metavar="AUDIO", help="files; by default a checkout's examples/audio")
    command.add_argument(
        "--model", metavar="DIR_OR_ID", help="a directory or a Hub id; by default a checkout's examples/sam-tiny"
    )
    command.add_argument("--prompt", default=DEFAULT_PROMPT, metavar="TEXT", help="default: %(default)s")
    command.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps …; by default cuda where there is one")
    command.add_argument(
        "--dtype", choices=DTYPES, metavar="T", help=f"{', '.join(DTYPES)}; float32 on a CPU, else auto (as stored)"
    )
    command.add_argument("--max-new-tokens", type=_positive, metavar="N", help="by default as the checkpoint says")
    command.add_argument(
        "--json",
        action="store_true",
        help='one JSON object a window: {"audio", "start", "end", "text", "seconds": the clip\'s length}',
    )
    command.set_defaults(command=describe)

    command = commands.add_parser(
        "convert",
        help="make a SAM directory from published weights",
        description="Converts an EAT and a Mamba-2 checkpoint into one SAM directory. SRC is a file, a directory or a "
        "Hub id (owner/name[@revision]). The connector is new and untrained.",
    )
    command.add_argument("--audio-encoder", required=True, metavar="SRC", help="EAT: fairseq's or the Hub's layout")
    command.add_argument("--language-model", required=True, metavar="SRC", help="Mamba-2: state-spaces' or Hub layout")
    command.add_argument("--tokenizer", required=True, metavar="SRC", help="usually EleutherAI/gpt-neox-20b")
    command.add_argument("--output", required=True, metavar="DIR", help="the directory to write")
    command.add_argument(
        "--connector", metavar="NAME", help="concatenation (the default), time_major or frequency_major"
    )
    command.add_argument("--dtype", metavar="T", help="to store: float32 (the default), bfloat16 or float16")
    command.add_argument("--max-shard-size", metavar="S", help="the largest file, such as 5GB")
    command.add_argument("--push-to-hub", metavar="ID", help="upload the directory to this repository of the Hub")
    command.add_argument(
        "--check",
        nargs=2,
        metavar=("WAV", "NPY"),
        help="compare the encoder's output for WAV with the features in NPY (EAT publishes such a pair)",
    )
    command.set_defaults(command=convert)

    command = commands.add_parser(
        "env",
        help="print versions, devices and what will run where",
        description="Prints what a bug report needs.",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(command=env)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser, *unused):
        from configuration_sam import __version__

        print(f"sam-alm {__version__}")
        parser.exit()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, expected a positive integer")
    return value


# ---------------------------------------------------------------------------------------------------------------
# describe
# ---------------------------------------------------------------------------------------------------------------


def describe(arguments: argparse.Namespace) -> int:
    """`sam-alm describe`: prints what is heard in each window of each file.

    Returns:
        `int`: 1 if a file could not be read (the others are described all the same), else 0.
    """
    paths = arguments.audio or _example_clips()
    model_id = arguments.model or _example_model()
    model, processor = _load(model_id, arguments.device, arguments.dtype)

    from tqdm import tqdm

    failed: list[str] = []
    show = sys.stderr.isatty() and len(paths) > 1
    progress = tqdm(paths, unit="file", file=sys.stderr, disable=not show)
    windows = _read_windows(progress, processor, arguments.prompt, failed)
    for batch in _batches(windows, BATCH_SIZE):
        texts = _generate(model, processor, [inputs for _, inputs in batch], arguments.max_new_tokens)
        for (window, _), text in zip(batch, texts):
            tqdm.write(_line({**window, "text": text}, arguments.json), file=sys.stdout)
        sys.stdout.flush()
    return 1 if failed else 0


def _example_clips() -> list[str]:
    folder = EXAMPLES / "audio"
    clips = [path for path in sorted(folder.glob("*")) if path.suffix in AUDIO_SUFFIXES]
    if not clips:
        raise CommandError("describe: no AUDIO given, expected one or more audio files.")
    return [os.path.relpath(path) for path in clips]


def _example_model() -> str:
    folder = EXAMPLES / "sam-tiny"
    if not (folder / "config.json").is_file():
        raise CommandError("describe: give --model, a directory or a Hub id: only a checkout has a default model.")
    return str(folder)


def _load(model_id: str, device: str | None, dtype: str | None) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModel, AutoProcessor
    from transformers.utils import logging

    import sam_alm

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # a name torch does not know, or a device it cannot reach
        raise CommandError(
            f"--device: got {device!r}, which torch cannot use: {str(error).splitlines()[0]}"
        ) from error
    dtype = dtype or ("float32" if place.type == "cpu" else "auto")
    try:
        model = AutoModel.from_pretrained(model_id, dtype=dtype)
        processor = AutoProcessor.from_pretrained(model_id)
    except (OSError, ValueError) as error:
        raise CommandError(f"--model: cannot load {model_id!r}: {error}") from error
    if not isinstance(model, sam_alm.SamForConditionalGeneration):
        raise CommandError(f"--model: {model_id!r} is of type {model.config.model_type!r}, expected 'sam_alm'.")
    return model.to(place).eval(), processor


def _read_windows(paths: Iterable[str], processor: Any, prompt: str, failed: list[str]) -> Iterator[tuple]:
    """Yields ({"audio", "start", "end", "seconds", "windows"}, inputs of one row) for every window of every file."""
    from audio_sam import read_windows

    for path in paths:
        try:
            spans, features = read_windows(path, processor.feature_extractor)
        except (OSError, ValueError) as error:
            print(f"sam-alm: {path}: {error}", file=sys.stderr)
            failed.append(path)
            continue
        inputs = processor(text=[prompt], audio=[[0.0] * 400], sampling_rate=16000, return_tensors="pt")
        for index, span in enumerate(spans):
            window = {"audio": path, **span, "windows": len(spans)}
            yield window, {**inputs, "input_features": features[index : index + 1]}


def _batches(items: Iterable, size: int) -> Iterator[list]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _generate(model: Any, processor: Any, rows: list[dict], max_new_tokens: int | None) -> list[str]:
    import torch

    # The prompt is the same in every row and a clip takes the same places whatever its length: nothing to pad.
    inputs = {name: torch.cat([row[name] for row in rows]).to(model.device) for name in rows[0]}
    limit = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    tokens = model.generate(**inputs, **limit)
    answers = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [" ".join(answer.split()) for answer in answers]  # a line stays a line


def _line(window: dict, as_json: bool) -> str:
    if as_json:
        times = {name: round(window[name], 6) for name in ("start", "end", "seconds")}
        return json.dumps({name: {**window, **times}[name] for name in ("audio", "start", "end", "text", "seconds")})
    span = [f"{window['start']:.2f}-{window['end']:.2f}"] if window["windows"] > 1 else []
    return "\t".join([window["audio"], *span, window["text"]])


# ---------------------------------------------------------------------------------------------------------------
# convert
# ---------------------------------------------------------------------------------------------------------------


def convert(arguments: argparse.Namespace) -> int:
    """`sam-alm convert`: makes a SAM directory and prints its sources, its size and what is untrained in it."""
    from sam_lab import conversion

    names = "audio_encoder language_model tokenizer output connector dtype max_shard_size push_to_hub check".split()
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    try:
        report = conversion.convert(**given)
    except (OSError, ValueError) as error:
        raise CommandError(f"convert: {error}") from error
    print(report)
    return 0


# ---------------------------------------------------------------------------------------------------------------
# env
# ---------------------------------------------------------------------------------------------------------------


def env(arguments: argparse.Namespace) -> int:
    """`sam-alm env`: prints versions, devices, and for each operation what will run where and why."""
    from kernels_sam import implementations

    report = {"versions": _versions(), "devices": _devices(), "implementations": implementations()}
    if arguments.json:
        print(json.dumps(report, indent=2))
        return 0
    print(_table([[name, version or "not installed"] for name, version in report["versions"].items()]))
    print()
    print(_table(list(report["devices"].items())))
    print()
    heads = ("operation", "device", "implementation", "reason")
    rows = [[" ".join(row[head].split()) for head in heads] for row in report["implementations"]]
    print(_table([list(heads), *rows]))
    return 0


def _versions() -> dict[str, str | None]:
    from configuration_sam import __version__

    versions: dict[str, str | None] = {"sam-alm": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    import soundfile

    versions["libsndfile"] = soundfile.__libsndfile_version__
    versions["ffmpeg"] = _ffmpeg_version()
    versions["platform"] = platform.platform()
    return versions


def _ffmpeg_version() -> str | None:
    program = shutil.which("ffmpeg")
    if program is None:
        return None
    answer = subprocess.run([program, "-version"], capture_output=True, text=True, errors="replace", check=False)
    words = answer.stdout.split()  # "ffmpeg version 7.1 Copyright …"
    return words[2] if words[:2] == ["ffmpeg", "version"] else "unknown"


def _devices() -> dict[str, str]:
    import torch

    devices = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = (
            f"{facts.name}, compute capability {facts.major}.{facts.minor}, {facts.total_memory / 2**30:.0f} GiB, "
            f"CUDA {torch.version.cuda}"
        )
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    return devices


def _table(rows: list[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, but for the last."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join("  ".join([*map(str.ljust, row[:-1], widths), row[-1]]).rstrip() for row in rows)


if __name__ == "__main__":
    sys.exit(main())
