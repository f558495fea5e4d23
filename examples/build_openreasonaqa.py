"""Builds OpenReasonAQA from OpenAQA's and ReasonAQA's files (after `pip install .`).

    python examples/build_openreasonaqa.py --openaqa openaqa_5.6M.json --reasonaqa train.json \
        --audio-root /data/sls/audioset/dave_version/audio=/mnt/audioset --audio-root AudioCapsLarger=/mnt/audiocaps \
        --tokenizer state-spaces/mamba-130m-hf --output data/openreasonaqa

The paper does not say how it drew its 3.8 million pairs: `--reading` and `--caption-rule` choose. The folder gets
Parquet shards in random order, `summary.json`, and the counts by kind and source as `openreasonaqa.json`; they are
printed, too. Records whose audio is not there are left out before anything is drawn.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout works without installing it
from sam_lab.data.coverage import coverage_table, parse_audio_roots
from sam_lab.data.openreasonaqa import build_openreasonaqa, report_table
from sam_lab.data.published import CAPTION_RULES, READINGS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--openaqa", required=True, help="OpenAQA's JSON file with closed and open questions")
    parser.add_argument("--reasonaqa", required=True, nargs="+", help="ReasonAQA's JSON files, such as train.json")
    parser.add_argument("--output", required=True, help="the folder to write")
    parser.add_argument("--size", type=int, default=3_800_000, help="number of records; default: %(default)s")
    parser.add_argument(
        "--reading", choices=READINGS, default="whole", help="what has that size; default: %(default)s"
    )
    parser.add_argument(
        "--caption-rule",
        choices=CAPTION_RULES,
        default="all_open",
        help="which open-ended questions give way: all; those that ask for a description; those that are not answered "
        "by yes or no; default: %(default)s",
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--audio-root", action="append", default=[], metavar="FROM=TO", help="where a folder of audio is; repeatable"
    )
    parser.add_argument("--no-audio-check", action="store_true", help="keep records whose audio is not there")
    parser.add_argument(
        "--max-missing", type=float, default=0.05, help="largest share of records without audio; default: %(default)s"
    )
    parser.add_argument(
        "--missing-source",
        action="append",
        default=[],
        metavar="NAME",
        help="a source that may lack its audio; repeatable",
    )
    parser.add_argument(
        "--closed-prefix", type=float, default=0.5, help="share of closed questions that say so; default: %(default)s"
    )
    parser.add_argument("--skip-unanswerable", action="store_true", help="leave out answers that there is no answer")
    parser.add_argument("--keep-case", action="store_true", help="do not lower-case ReasonAQA, as Mellow does")
    parser.add_argument("--tokenizer", help="a tokenizer.json, a folder or a Hub id: counts what --cutoff would cut")
    parser.add_argument("--cutoff", type=int, default=108, help="text tokens, LTU's by default: %(default)s")
    args = parser.parse_args()
    try:
        report = build_openreasonaqa(
            args.openaqa,
            args.reasonaqa,
            args.output,
            size=args.size,
            reading=args.reading,
            caption_rule=args.caption_rule,
            seed=args.seed,
            closed_prefix=args.closed_prefix,
            skip_unanswerable=args.skip_unanswerable,
            lowercase=not args.keep_case,
            audio_roots=parse_audio_roots(args.audio_root),
            check_audio=not args.no_audio_check,
            max_missing=args.max_missing,
            missing_sources=args.missing_source,
            tokenizer=args.tokenizer,
            cutoff=args.cutoff,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(coverage_table(report["coverage"]), report_table(report), sep="\n\n")


if __name__ == "__main__":
    main()
