"""Measures a SAM checkpoint on benchmarks and writes the scores with every prediction.

    python examples/evaluate.py esc50 --model examples/sam-tiny --data path/to/ESC-50 --fold 4 --output esc50.json
    accelerate launch examples/evaluate.py esc50 vocalsound audiocaps --model DIR --text-encoder clap-2022 \\
        --data esc50=path/to/ESC-50 --data vocalsound=path/to/vocalsound --data audiocaps=audiocaps_test.json \\
        --audio-root /published/paths=path/to/audio --output results
    python examples/evaluate.py clotho --human --data path/to/clotho --output human.json
    python examples/evaluate.py questions --model examples/sam-tiny --data questions.csv --output questions.json

`--data` is the benchmark as it is published, or one of LTU's evaluation files (`sam_lab.evaluation.tasks.read_task`).
Classification is scored by a text encoder, which has no default, and by the likelihood of the labels; ESC-50 without a
text encoder by whether the description names the clip's class and no other of the fifty; the protocols are told of in
`sam_lab.evaluation.protocols.evaluate`. `questions` takes a table of your own, with the columns audio, prompt, answer and kind (such
as `binary` and `multiple_choice`).

The answers are kept beside the output, in `FILE.json.answers`, until the results of all benchmarks are written: the
same command goes on with a run that was broken off, with any number of processes.
"""

import argparse
import csv
import shutil
import sys
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from configuration_sam import SamConfig
from modeling_sam import SamForConditionalGeneration
from processing_sam import SamProcessor
from sam_lab.common.files import write_json
from sam_lab.common.processes import end_processes
from sam_lab.common.provenance import checkpoint_hash, versions
from sam_lab.common.text_tables import markdown
from sam_lab.data.coverage import parse_audio_roots
from sam_lab.evaluation.caption_metrics import caption_preflight
from sam_lab.evaluation.mmau import MMAU_FILES, PROMPT_STYLES, read_mmau, shuffle_choices, write_mmau_submission
from sam_lab.evaluation.protocols import ANSWER_FORM, choose_protocols, coverage_line, evaluate, evaluate_humans
from sam_lab.evaluation.questions import QUESTIONS, question_items
from sam_lab.evaluation.tasks import MMAU_SPLITS, TASKS, read_task
from sam_lab.evaluation.text_encoders import load_text_encoder
from sam_lab.paper.tables import load_results, table1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = [*TASKS, "questions"]
    parser.add_argument("benchmarks", nargs="+", choices=choices, metavar="BENCHMARK", help=", ".join(choices))
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("--model", help="a SAM checkpoint: a directory or a Hub id")
    models.add_argument("--human", action="store_true", help="score one human caption a clip against its others")
    parser.add_argument(
        "--data", required=True, action="append", metavar="[BENCHMARK=]PATH", help="its folder, JSON file or table"
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file; of several benchmarks a folder of them")
    parser.add_argument("--fold", type=int, help="of ESC-50: 1 to 5; all by default")
    parser.add_argument("--text-encoder", help="such as clap-2022, clap-2023, minilm, or a folder")
    parser.add_argument("--text-tokenizer", help="folder of Microsoft CLAP's tokenizer, where there is no network")
    parser.add_argument("--protocol", action="append", help="one of several; the first gives the value")
    parser.add_argument(
        "--answer-form", default=ANSWER_FORM, help="how the model writes a label (default: %(default)s)"
    )
    parser.add_argument(
        "--prompt-style", choices=PROMPT_STYLES, default="reasonaqa", help="of MMAU (default: %(default)s)"
    )
    parser.add_argument(
        "--shuffle-choices", type=int, metavar="SEED", help="ask MMAU with its choices in another order"
    )
    parser.add_argument("--audio-root", action="append", default=[], metavar="FROM=TO", help="where a folder is here")
    parser.add_argument(
        "--min-coverage", type=float, default=0.0, help="stop where a smaller share of the clips is there, as 0.95"
    )
    parser.add_argument("--limit", type=int, help="the first items only, for a quick look")
    parser.add_argument("--spice-jars", help="folder of SPICE's jars; see examples/spice-pom.xml")
    parser.add_argument("--require-spice", action="store_true", help="stop where SPICE cannot be computed")
    parser.add_argument("--max-new-tokens", type=int, default=400, help="longest answer (default: %(default)s, LTU's)")
    parser.add_argument("--batch-size", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--device", help="by default each process's GPU where there is one")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    args = parser.parse_args()
    args.benchmarks = list(dict.fromkeys(args.benchmarks))
    if len(args.benchmarks) > 1 and args.output.suffix == ".json":
        parser.error(f"--output: got {args.output} for {len(args.benchmarks)} benchmarks, expected a folder")
    kinds = {TASKS.get(name, QUESTIONS).metric for name in args.benchmarks}
    for option, is_given, is_used, meaning in (
        ("fold", args.fold is not None, "esc50" in args.benchmarks, "only esc50 has folds"),
        ("shuffle-choices", args.shuffle_choices is not None, "mmau" in kinds, "only MMAU has choices"),
        ("prompt-style", args.prompt_style != "reasonaqa", "mmau" in kinds, "only MMAU's prompts have styles"),
        ("require-spice", args.require_spice, "caption" in kinds, "no captions are scored"),
        ("text-tokenizer", args.text_tokenizer is not None, args.text_encoder is not None, "there is no text encoder"),
    ):
        if is_given and not is_used:
            parser.error(f"--{option}: given, but {meaning}")
    for option in ("limit", "batch_size", "max_new_tokens"):
        if (value := getattr(args, option)) is not None and value < 1:
            parser.error(f"--{option.replace('_', '-')}: got {value}, expected at least 1")
    args.data = data_of(args.data, args.benchmarks, parser)
    return args


def data_of(given: list[str], benchmarks: list[str], parser: argparse.ArgumentParser) -> dict[str, str]:
    """Where each benchmark's data are: its own PATH, else the one that is given without a name."""
    named: dict[str, str] = {}
    general = []
    for each in given:
        name, equals, path = each.partition("=")
        if not equals or name not in (*TASKS, "questions"):
            general.append(each)
        elif named.setdefault(name, path) != path:
            parser.error(f"--data: got {name} twice, {named[name]!r} and {path!r}")
    unused = [name for name in named if name not in benchmarks] + general[1:]
    if unused:
        parser.error(f"--data: got {unused[0]!r}, which is for none of {', '.join(benchmarks)}")
    without = [name for name in benchmarks if name not in named and not general]
    if without:
        parser.error(f"--data: got none for {without[0]}, expected --data {without[0]}=PATH")
    return {name: named.get(name, *general) if general else named[name] for name in benchmarks}


def check_model(model: str) -> None:
    """Asks for the configuration alone: without a network the processor's files are each tried for half a minute."""
    try:
        SamConfig.from_pretrained(model)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(f"--model: got {model!r}, expected a SAM checkpoint: {reason}") from None


def items_of(name: str, args: argparse.Namespace) -> list:
    if name == "questions":
        with open(args.data[name], newline="", encoding="utf-8") as handle:
            items = question_items(list(csv.DictReader(handle)), Path(args.data[name]).parent)
    elif name in MMAU_SPLITS:
        roots = parse_audio_roots(args.audio_root)
        items = read_mmau(args.data[name], MMAU_SPLITS[name], args.prompt_style, roots)
        if args.shuffle_choices is not None:
            items = shuffle_choices(items, args.shuffle_choices, args.prompt_style)
    else:
        fold = args.fold if name == "esc50" else None
        items = read_task(name, args.data[name], fold, parse_audio_roots(args.audio_root))
    return items[: args.limit]


def report(result: dict) -> None:
    """What a reader of the terminal wants to know."""
    rows = [
        (f"{result['benchmark']}, {name}, {each['metric']}", each, result["count"])
        for name, each in result["protocols"].items()
    ]
    rows += [(name, each, each["count"]) for name, each in result.get("by_kind", {}).items()]
    for name, score, count in rows:
        if score["value"] is None:
            print(f"{name}: no answers are published; {count} predictions")
            continue
        low, high = score["interval"] or (None, None)
        interval = "" if low is None else f" (95 % interval {low:.1%} to {high:.1%})"
        print(f"{name}: {score['value']:.1%}{interval} of {count}")
    for task, share in result.get("by_task", {}).items():
        print(f"{task}: {share['value']:.1%} of {share['count']}")
    for name, share in result.get("baselines", {}).items():
        print(f"beside it, {name}: " + ("unknown" if share["value"] is None else f"{share['value']:.1%}"))
    if result["missing"]:
        print(f"{len(result['missing'])} of {result['expected']} clips are missing, and do not count")
    for failed in result["failed"][:10]:
        print(f"failed: {failed['reason']}")
    if result["failed"]:
        print(f"{len(result['failed'])} of {result['count']} clips cannot be read, and count as wrong")


def place(name: str, args: argparse.Namespace) -> Path:
    """Where a benchmark's result is written."""
    return args.output / f"{name}.json" if len(args.benchmarks) > 1 or args.output.is_dir() else args.output


def work_folder(name: str, args: argparse.Namespace) -> Path:
    """Where its answers are kept meanwhile."""
    output = place(name, args)
    return output.with_name(f"{output.name}.answers")


def score_humans(args: argparse.Namespace) -> None:
    """The row of the people who captioned the clips."""
    for name in args.benchmarks:
        output = place(name, args)
        output.parent.mkdir(parents=True, exist_ok=True)
        result = evaluate_humans(items_of(name, args), TASKS.get(name, QUESTIONS), args.spice_jars, args.require_spice)
        write_json({**result, "limit": args.limit, "versions": versions()}, output)
        report(result)
        for metric, value in result["scores"].items():
            print(f"  {metric}: {value:.4f}")


def main() -> None:
    args = arguments()
    if args.human:
        score_humans(args)
        return
    on_cpu = not torch.cuda.is_available() or (args.device or "").startswith("cpu")
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=1))  # processes wait while the main one scores
    device = args.device or ("cpu" if on_cpu else state.device)
    check_model(args.model)
    plan, written = [], []
    for name in args.benchmarks:  # all that can be wrong is found before anything is generated
        benchmark, items = TASKS.get(name, QUESTIONS), items_of(name, args)
        protocols = choose_protocols(benchmark, args.protocol, args.text_encoder is not None)
        coverage = coverage_line(benchmark, items, args.min_coverage)
        missing = (
            caption_preflight(args.spice_jars, args.require_spice)["missing"] if "captions" in protocols else None
        )
        state.print(coverage + (f"\n{missing}" if missing else ""))
        plan.append((benchmark, items, protocols))
    encoder = None
    if args.text_encoder is not None:
        encoder = load_text_encoder(args.text_encoder, device, tokenizer=args.text_tokenizer)
    processor = SamProcessor.from_pretrained(args.model)
    model = SamForConditionalGeneration.from_pretrained(args.model, dtype=args.dtype).to(device).eval()
    checkpoint = checkpoint_hash(args.model) if state.is_main_process else None  # which alone writes it

    for benchmark, items, protocols in plan:
        name = benchmark.name
        output = place(name, args)
        result = evaluate(
            *(model, processor, items, benchmark, work_folder(name, args), protocols, encoder),
            max_new_tokens=args.max_new_tokens,
            batch_size=args.batch_size,
            min_coverage=args.min_coverage,
            answer_form=args.answer_form,
            spice_jars=args.spice_jars,
            require_spice=args.require_spice,
            checkpoint_hash=checkpoint,
            state=state,
        )
        if result is None:  # another process than the main one
            continue
        config = {**vars(args), "output": str(args.output), "device": str(device), "processes": state.num_processes}
        result |= {
            "fold": args.fold if name == "esc50" else None,
            "limit": args.limit,
            "model": args.model,
            "checkpoint_hash": checkpoint,
        }
        result |= {"versions": versions(), "config": config, "model_config": model.config.to_diff_dict()}
        write_json(result, output)
        if name in MMAU_SPLITS and args.limit is None:
            said = {each["id"]: each["prediction"] for each in result["predictions"]}
            source = Path(args.data[name])
            source = source / MMAU_FILES[MMAU_SPLITS[name].removeprefix("test-")] if source.is_dir() else source
            submission = output.with_name(f"{output.stem}-submission.json")
            write_mmau_submission(items, [said.get(item.id) for item in items], source, submission)
        report(result)
        if benchmark.paper_column is not None:
            written.append(str(output))
    if state.is_main_process:  # only now: a run that is broken off before asks nothing twice
        for benchmark, _, _ in plan:
            shutil.rmtree(work_folder(benchmark.name, args))
    if written:
        print("\n" + markdown(table1(load_results(written), only_ours=True)))
    end_processes()


if __name__ == "__main__":
    main()
