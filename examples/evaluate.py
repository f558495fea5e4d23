"""Measures a SAM checkpoint on a benchmark and writes the score with every prediction.

    python examples/evaluate.py esc50 --model examples/sam-tiny --data path/to/ESC-50 --fold 5 --output esc50.json

`--data` is the benchmark as it is published (ESC-50: `meta/esc50.csv` and `audio/`). ESC-50 is scored by whether the
greedy description names the clip's class and no other of the fifty (`evaluation_sam.names_label`).
"""

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from evaluation_sam import evaluate_esc50
from modeling_sam import SamForConditionalGeneration
from processing_sam import SamProcessor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=["esc50"], help="what to measure")
    parser.add_argument("--model", required=True, help="a SAM checkpoint: a directory or a Hub id")
    parser.add_argument("--data", required=True, help="the benchmark's folder")
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
    result = evaluate_esc50(model, processor, args.data, args.fold, batch_size=args.batch_size)
    Path(args.output).write_text(json.dumps({**result, "model": args.model}, indent=1, ensure_ascii=False) + "\n")
    low, high = result["interval"]
    print(
        f"{result['benchmark']}: {result['value']:.1%} (95 % interval {low:.1%} to {high:.1%}) "
        f"of {result['count']} clips, {len(result['missing'])} missing"
    )


if __name__ == "__main__":
    main()
