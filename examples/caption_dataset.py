"""Describes every clip of a folder or of a `datasets` dataset, of any size.

    python examples/caption_dataset.py recordings/ --model examples/sam-tiny --output captions/
    python examples/caption_dataset.py owner/dataset --streaming --split train --keep id --output captions/ --model DIR
    accelerate launch examples/caption_dataset.py recordings/ --model DIR --output captions/ \
        --prompt "caption=Close-ended question: Write an audio caption describing the sound." \
        --prompt "where=Where was this recorded?" --labels labels.txt

A clip of more than 10.24 seconds is described window by window. The output is a folder of shards (Parquet, or JSON
lines with --format jsonl), a row a window, as `sam_lab/annotation.py` describes it; read it with
`datasets.load_dataset("parquet", data_files="captions/part-*.parquet")`. What cannot be read is listed in
failures.jsonl, with the reason. The same command goes on after a kill, also with another number of processes.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from accelerate.utils import gather_object

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from modeling_sam import SamForConditionalGeneration
from processing_sam import SamProcessor
from sam_lab.annotation import FORMATS, describe_clips, finish_output, open_output, output_schema
from sam_lab.common.processes import end_processes, processes
from sam_lab.common.prompts import CLASSIFICATION_PROMPT, DEFAULT_PROMPT
from sam_lab.common.provenance import versions, weights_hash
from sam_lab.data.clips import open_clips


def parse_prompts(values: list[str], labels: bool = False) -> dict[str, str]:
    """Columns and prompts of `--prompt`: one prompt alone is the column `text`, several are given as NAME=TEXT.

    Args:
        values (list of `str`): What the option was given; none: the prompt of `sam-alm describe`, unless there are
            labels.
        labels (`bool`, *optional*, defaults to `False`): Whether labels are scored.

    Raises:
        ValueError: Several prompts and one without a name, or two of one name.
    """
    if not values:
        return {} if labels else {"text": DEFAULT_PROMPT}
    named = [value.split("=", 1) if value.split("=", 1)[0].isidentifier() else ["", value] for value in values]
    if len(named) == 1:
        return {named[0][0] or "text": named[0][1]}
    prompts = dict(named)
    if len(prompts) < len(named) or "" in prompts:
        raise ValueError(f"prompt: got {values}, expected several as NAME=TEXT, with different names.")
    return prompts


def read_labels(path: str | None) -> list[str] | None:
    """The lines of a file that are not blank."""
    if path is None:
        return None
    if not Path(path).is_file():
        raise FileNotFoundError(f"labels: there is no file {path!r}.")
    labels = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"labels: {path!r} has {len(labels)} lines, expected one or more, all different.")
    return labels


def caption_dataset(args: argparse.Namespace) -> dict | None:
    """Does the job; the summary comes back in the first process."""
    prompts, labels = parse_prompts(args.prompt, args.labels is not None), read_labels(args.labels)
    source = open_clips(args.source, args.split, args.audio_column, args.keep, args.streaming)
    output_schema(source.schema, prompts, labels)  # what cannot be is said before anything is loaded
    state = processes()
    dtype = args.dtype or ("float32" if state.device.type == "cpu" else "auto")
    model = SamForConditionalGeneration.from_pretrained(args.model, dtype=dtype).to(state.device).eval()
    processor = SamProcessor.from_pretrained(args.model)
    settings: dict = {}
    if state.is_main_process:
        settings = {
            "source": args.source,
            "fingerprint": source.fingerprint,
            **{name: getattr(args, name) for name in ("split", "audio_column", "keep", "streaming", "max_new_tokens")},
            "model_hash": weights_hash(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "prompts": prompts,
            "labels": labels,
            "label_prompt": args.label_prompt if labels else None,
            "format": args.format,
        }
        open_output(args.output, settings, args.retry_failures)
        if source.skipped:
            found = ", ".join(f"{number} {suffix or 'without'}" for suffix, number in source.skipped.most_common(8))
            print(f"files with other endings, left out: {found}", file=sys.stderr)
    state.wait_for_everyone()
    counts = describe_clips(
        model,
        processor,
        source,
        args.output,
        prompts,
        labels,
        args.label_prompt,
        args.format,
        args.max_new_tokens,
        args.batch_size,
        args.workers,
        args.shard_size,
        state.process_index,
        state.num_processes,
    )
    state.wait_for_everyone()
    counts = gather_object([counts])
    summary = summarise(args, state, model, settings["model_hash"], counts) if state.is_main_process else None
    end_processes()
    return summary


def summarise(args: argparse.Namespace, state, model, hashed: str, counts: list[dict]) -> dict:
    """Finishes the output folder: its counts, and how fast all processes together were."""
    total = {name: sum(each[name] for each in counts) for name in ("files", "windows", "failures")}
    seconds, waiting = (max(each[name] for each in counts) for name in ("seconds", "waiting_seconds"))
    on_gpu = state.device.type == "cuda"
    device = torch.cuda.get_device_name(state.device) if on_gpu else f"cpu, {torch.get_num_threads()} threads"
    return finish_output(
        args.output,
        model=args.model,
        model_hash=hashed,
        versions=versions(),
        run={
            **total,
            "seconds": round(seconds, 3),
            "files_per_second": round((total["files"] + total["failures"]) / seconds, 3),
            "windows_per_second": round(total["windows"] / seconds, 3),
            "waiting_seconds": round(waiting, 3),
            "processes": state.num_processes,
            "workers": args.workers,
            "batch_size": args.batch_size,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": device,
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder of audio, a folder or file of a dataset, or a dataset on the Hub")
    parser.add_argument("--model", required=True, help="a SAM checkpoint: a directory or a Hub id")
    parser.add_argument("--output", required=True, help="the folder to write, or to go on with")
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="[NAME=]TEXT",
        help="what is asked; repeatable, each a column. Default: what `sam-alm describe` asks, as the column text",
    )
    parser.add_argument("--labels", metavar="FILE", help="labels to score, one a line: columns label, log_likelihoods")
    parser.add_argument("--label-prompt", default=CLASSIFICATION_PROMPT, metavar="TEXT", help="default: %(default)s")
    parser.add_argument("--split", default="train", help="of a dataset (default: %(default)s)")
    parser.add_argument("--audio-column", metavar="NAME", help="of a dataset; by default its Audio column")
    parser.add_argument("--keep", action="append", default=[], metavar="COLUMN", help="carry along; repeatable")
    parser.add_argument("--streaming", action="store_true", help="read a dataset without preparing it on disk")
    parser.add_argument("--format", choices=FORMATS, default="parquet", help="default: %(default)s")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="by default as the checkpoint says")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="windows (default: %(default)s)")
    parser.add_argument("--shard-size", type=int, default=2000, metavar="N", help="windows (default: %(default)s)")
    share = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    parser.add_argument(
        "--workers", type=int, default=min(8, share), metavar="N", help="decoders a process (default: %(default)s)"
    )
    parser.add_argument("--dtype", help="float32 (on a CPU), bfloat16 …; elsewhere as stored")
    parser.add_argument("--retry-failures", action="store_true", help="try again what could not be read before")
    args = parser.parse_args()
    try:
        summary = caption_dataset(args)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    if summary is not None:
        print(json.dumps(summary, indent=1, ensure_ascii=False))
        if not summary["files"]:
            sys.exit(f"error: none of {summary['failures']} clips could be read, see failures.jsonl")


if __name__ == "__main__":
    main()
