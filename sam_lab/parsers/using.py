"""Parsers of the commands that use a model: describe, caption, convert, env, benchmark."""

import argparse
import os
from pathlib import Path
from typing import Any

from sam_lab.common.cores import num_cores
from sam_lab.common.prompts import CLASSIFICATION_PROMPT, DEFAULT_PROMPT
from sam_lab.parsers.options import (
    CONNECTORS,
    DEFAULT,
    DTYPES,
    FORMATS,
    INCOMPLETE,
    MAX_SECONDS,
    MODEL,
    SIZES,
    above_zero,
    not_negative,
    positive,
)


def describe(parser: argparse.ArgumentParser) -> None:
    """Describes audio files in words.

    Prints a line for each file: path, tab, text. A file of several windows of 10.24 seconds has a line for each
    window: path, tab, start-end in seconds, tab, text. A path's backslashes are \\\\, its line ends \\n, its tabs \\t,
    other control characters their number, as \\x1b. --json has the path itself (a byte that is no UTF-8 is \\udcNN).
    """
    add = parser.add_argument
    add("audio", nargs="*", metavar="AUDIO", help="files; by default a checkout's examples/audio")
    add("--model", metavar="DIR_OR_ID", help=f"{MODEL}; by default a checkout's examples/sam-tiny")
    add("--prompt", default=DEFAULT_PROMPT, metavar="TEXT", help=DEFAULT)
    add("--device", metavar="D", help="cpu, cuda, cuda:1, mps ...; by default cuda where available")
    add("--dtype", choices=("auto", *DTYPES), help="default: float32 on a CPU, else auto (as stored)")
    add("--max-new-tokens", type=positive, metavar="N", help="by default the checkpoint's")
    add("--incomplete", **INCOMPLETE)
    add("--max-seconds", **MAX_SECONDS)
    text = 'print JSON objects: {"audio", "start", "end", "text", "seconds": the clip\'s length}'
    add("--json", action="store_true", help=text)


def convert(parser: argparse.ArgumentParser) -> None:
    """Makes a SAM checkpoint from published weights.

    Converts an EAT and a Mamba-2 checkpoint into one SAM directory. SRC is a file, a directory or a Hub id
    (owner/name[@revision]). The connector is new and untrained.
    """
    add = parser.add_argument
    add("--audio-encoder", required=True, metavar="SRC", help="EAT: fairseq's or the Hub's layout")
    add("--audio-encoder-heads", type=positive, metavar="N", help="of an EAT whose files do not say it")
    add("--language-model", required=True, metavar="SRC", help="Mamba-2: state-spaces' or the Hub's layout")
    add("--tokenizer", required=True, metavar="SRC", help="usually EleutherAI/gpt-neox-20b")
    add("--output", required=True, metavar="DIR", help="the directory to write")
    add("--connector", choices=CONNECTORS, help="default: concatenation")
    add("--dtype", choices=DTYPES, help="to store; default: float32")
    add("--max-shard-size", metavar="S", help="of the largest file, such as 5GB")
    add("--push-to-hub", metavar="ID", help="upload the directory to this repository of the Hub")
    add(
        "--check",
        nargs=2,
        metavar=("WAV", "NPY"),
        help="compare the encoder's output for WAV with the features in NPY (EAT publishes such a pair)",
    )


def env(parser: argparse.ArgumentParser) -> None:
    """Prints versions, devices and implementations: what a bug report should contain."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def caption(parser: argparse.ArgumentParser) -> None:
    """Describes every clip of a folder or dataset of any size.

        sam-alm caption recordings/ --model examples/sam-tiny --output captions/
        sam-alm caption owner/dataset --streaming --split train --keep id --output captions/ --model DIR
        accelerate launch -m sam_alm caption recordings/ --model DIR --output captions/ --labels labels.txt \\
            --prompt "caption=Write an audio caption." --prompt "where=Where was this recorded?"

    A clip of more than 10.24 seconds is described window by window. The output is a folder of shards with a row for
    each window, as sam_lab/annotation.py documents it. failures.jsonl lists what cannot be read, with the reason. The
    same command resumes a killed run, also with another number of processes.
    """
    add = parser.add_argument
    share = max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    add("source", metavar="SOURCE", help="a folder of audio, a folder or file of a dataset, or a dataset on the Hub")
    add("--model", required=True, metavar="DIR_OR_ID", help=MODEL)
    add("--output", required=True, metavar="DIR", help="the folder to write or to resume")
    add(
        "--prompt",
        action="append",
        default=[],
        metavar="[NAME=]TEXT",
        help="a question; repeatable, each is a column; by default that of `sam-alm describe`, as the column text",
    )
    add("--labels", metavar="FILE", help="labels to score, one a line: columns label, log_likelihoods")
    add("--label-prompt", default=CLASSIFICATION_PROMPT, metavar="TEXT", help=DEFAULT)
    add("--split", default="train", metavar="NAME", help=f"of a dataset; {DEFAULT}")
    add("--audio-column", metavar="NAME", help="of a dataset; by default its Audio column")
    add("--keep", action="append", default=[], metavar="COLUMN", help="copy to the output; repeatable")
    add("--streaming", action="store_true", help="read a dataset without preparing it on disk")
    add("--format", choices=FORMATS, default="parquet", help=DEFAULT)
    add("--max-new-tokens", type=positive, metavar="N", help="by default the checkpoint's")
    add("--batch-size", type=positive, default=32, metavar="N", help=f"windows; {DEFAULT}")
    add("--shard-size", type=positive, default=2000, metavar="N", help=f"windows; {DEFAULT}")
    add("--workers", type=not_negative, default=min(8, share), metavar="N", help=f"decoders a process; {DEFAULT}")
    add("--dtype", choices=("auto", *DTYPES), help="default: float32 on a CPU, else auto (as stored)")
    add("--incomplete", **INCOMPLETE)
    add("--max-seconds", **MAX_SECONDS)
    add("--retry-failures", action="store_true", help="try again what could not be read before")


def benchmark(parser: argparse.ArgumentParser) -> None:
    """Measures speed and memory with random weights of the paper's sizes.

        sam-alm benchmark train --size 2.7b --batch 32 64 --json train.json
        sam-alm benchmark train --size 2.7b --connector time_major --memory-limit-gib 23.5 --json fit.json
        sam-alm benchmark load --workers 0 4 8 --json load.json

    The result is a list of {"work", "implementation", "size", "batch", "dtype", "state_dtype", "per_second",
    "floor_ms", "device", ...}, written after each measurement. floor_ms is the time for the arithmetic of a
    micro-batch at the 790 TFLOP/s that a large bf16 matrix product reached on an H100.
    """
    works = parser.add_subparsers(dest="work", required=True, metavar="{load,train}")

    def add_work(name: str, seconds: float, text: str) -> Any:
        add = works.add_parser(name, help=text, description=text).add_argument
        add("--json", type=Path, required=True, metavar="FILE", help="the file to write")
        add("--batch", type=positive, nargs="+", default=[32], metavar="N", help="rows of a micro-batch")
        add("--seconds", type=above_zero, default=seconds, metavar="S", help=f"of each, at most; {DEFAULT}")
        add("--device", metavar="D", help="by default cuda where available")
        add("--seed", type=int, default=0, metavar="N", help=DEFAULT)
        return add

    add = add_work("load", 10.0, "Clips a second from compressed stereo files of 44.1 kHz to batches.")
    add("--clips", type=positive, default=64, metavar="N", help=f"files of each format; {DEFAULT}")
    add("--workers", type=not_negative, nargs="+", default=[0, 2, 4, 8], metavar="N", help="processes that load")
    add("--features", nargs="+", choices=("workers", "device"), default=["workers", "device"], help="place of log-mel")
    add("--threads", type=positive, default=num_cores(), metavar="N", help=f"of torch without workers; {DEFAULT}")

    add = add_work("train", 60.0, "LoRA, connector and encoder, bf16 autocast, AdamW: pairs a second, memory, shares.")
    add("--size", choices=(*SIZES, "tiny"), required=True, help="of the model; tiny is for trying the command")
    add("--connector", nargs="+", choices=CONNECTORS, default=["concatenation"], help="one or more")
    add("--rank", type=positive, default=256, metavar="N", help=f"of LoRA; {DEFAULT}")
    add("--frozen-encoder", action="store_true", help="do not train the encoder")
    add("--recompute", action="store_true", help="recompute activations in the backward pass")
    add("--pack-to", type=positive, metavar="N", help="pack pairs into rows of at most so many positions")
    add("--lengths", choices=("mix", "captions"), default="mix", help=f"distribution of the text's length; {DEFAULT}")
    add("--text-tokens", type=positive, metavar="N", help="instead: so many text positions in every pair")
    add("--text-cutoff", type=positive, metavar="N", help="most text positions of a pair; LTU's is 108")
    add("--pad-to-multiple-of", type=positive, default=1, metavar="N", help=DEFAULT)
    add("--chunk-size", type=positive, metavar="N", help="of the scan's kernels; default: the configuration's")
    add("--global-batch", type=positive, default=256, metavar="N", help=f"pairs of an optimiser step; {DEFAULT}")
    add("--steps", type=positive, default=8, metavar="N", help=f"optimiser steps to measure, at most; {DEFAULT}")
    add("--waveforms", action="store_true", help="start with sound in the host's memory, not log-mel")
    add("--all-logits", action="store_true", help="compute the logits of all positions")
    add("--memory-limit-gib", type=above_zero, metavar="X", help="of a smaller card; finds the largest micro-batch")
    add("--largest-batch", type=positive, default=256, metavar="N", help=f"where that search ends; {DEFAULT}")
    add("--profile", type=Path, metavar="FILE", help="write the time of each kernel in a step")
