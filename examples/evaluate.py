"""Measures a SAM checkpoint on a benchmark and writes the score with every prediction.

    python examples/evaluate.py esc50 --model examples/sam-tiny --data path/to/ESC-50 --fold 5 --output esc50.json
    python examples/evaluate.py questions --model examples/sam-tiny --data questions.csv --output questions.json

`--data` is the benchmark as it is published (ESC-50: `meta/esc50.csv` and `audio/`). ESC-50 is scored by whether the
greedy description names the clip's class and no other of the fifty (`evaluation_sam.names_label`). `questions` takes a
table of your own, with the columns audio, prompt, answer and kind (such as `binary` and `multiple_choice`), and scores
whether the answers are right (`evaluation_sam.answers_question`).
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from evaluation_sam import evaluate_esc50, evaluate_questions
from modeling_sam import SamForConditionalGeneration
from processing_sam import SamProcessor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=["esc50", "questions"], help="what to measure")
    parser.add_argument("--model", required=True, help="a SAM checkpoint: a directory or a Hub id")
    parser.add_argument("--data", required=True, help="the benchmark's folder, or the table of questions")
    parser.add_argument("--fold", type=int, help="of ESC-50: 1 to 5; all by default")
    parser.add_argument("--batch-size", type=int, default=32, help="default: %(default)s")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s"
    )
    parser.add_argument("--dtype", default="float32", help="float32 (the default) or bfloat16")
    parser.add_argument("--output", required=True, help="the JSON file to write")
    args = parser.parse_args()

    processor = SamProcessor.from_pretrained(args.model)
    model = SamForConditionalGeneration.from_pretrained(args.model, dtype=args.dtype).to(args.device).eval()
    if args.benchmark == "esc50":
        result = evaluate_esc50(model, processor, args.data, args.fold, batch_size=args.batch_size)
    else:
        with open(args.data, newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
        result = evaluate_questions(model, processor, rows, Path(args.data).parent, args.batch_size)
    Path(args.output).write_text(json.dumps({**result, "model": args.model}, indent=1, ensure_ascii=False) + "\n")
    for name, score in {args.benchmark: result, **result.get("by_kind", {})}.items():
        low, high = score["interval"]
        print(f"{name}: {score['value']:.1%} (95 % interval {low:.1%} to {high:.1%}) of {score['count']}")
    if result.get("missing"):
        print(f"{len(result['missing'])} of {result['expected']} clips are missing")


if __name__ == "__main__":
    main()
