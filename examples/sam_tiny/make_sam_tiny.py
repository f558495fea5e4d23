"""Makes what `examples/sam-tiny` is trained from, and finishes it afterwards (`train.sh` runs all of it).

    python examples/sam_tiny/make_sam_tiny.py prepare --data ../shared/data --work runs/sam-tiny [--development]
    python examples/sam_tiny/make_sam_tiny.py finish --data ../shared/data --work runs/sam-tiny
    python examples/sam_tiny/make_sam_tiny.py card --data ../shared/data --work runs/sam-tiny

`prepare` writes into the work folder: the tables that `recipes/sam-tiny.yaml` trains on, stage by stage (audio,
prompt, answer, kind), the scenes' audio, `validation.csv`, `questions.csv` about the clips to validate on, `esc50/`
(clips of folds 3 and 4 in ESC-50's layout, for `sam-alm evaluate`) and `initial/`, a checkpoint of random weights with
its tokenizer. It takes the clips of the training split whose licence allows weights to be shared, less those of
`examples/audio/excluded_from_training.txt`. With `--development` fold 3 of ESC-50 is excluded from the training and is
the validation split, so that settings can be chosen without looking at fold 4.

`finish` stores the result of the recipe's last stage in bf16 as `sam-tiny/`, with attribution and licence; `card`
writes its model card with what `sam-alm evaluate` has measured.
"""

import argparse
import csv
import json
import math
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import AutoProcessor, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout works without installing it
import scenes
from captions import PHRASES, SENTENCE_PROMPTS, caption, label_list, sentence

from configuration_sam import SamAudioConfig, SamConfig, mamba2_config
from modeling_sam import SamForConditionalGeneration
from processing_sam import PROMPT_TEMPLATE, SamFeatureExtractor, SamProcessor
from sam_lab.common.prompts import CLASSIFICATION_PROMPT, DEFAULT_PROMPT
from sam_lab.training.model import save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
EXCLUDED = ROOT / "examples" / "audio" / "excluded_from_training.txt"
VOCABULARY = 2048
PATCH = 16  # mel bins and frames, as in the paper


def excluded_files() -> set[str]:
    """The clips that no training may use, since `examples/audio` holds the same recordings."""
    lines = EXCLUDED.read_text().splitlines()
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}


def training_clips(metadata: list[dict], development: bool = False) -> tuple[list[dict], list[dict]]:
    """The clips to train on and those to validate on.

    Args:
        metadata (list of `dict`): Rows of the clips' `metadata.csv`.
        development (`bool`, *optional*, defaults to `False`): Exclude ESC-50's fold 3 and validate on it; else
            validate on the clips of the validation split that are not of ESC-50.
    """
    excluded = excluded_files()
    usable = [row for row in metadata if row["weights_ok"] == "yes" and row["label"] in PHRASES]
    usable = [row for row in usable if row["file"] not in excluded]
    train = [row for row in usable if row["split"] == "train"]
    if development:
        held_out = [row for row in train if row["official_fold"] == "fold3"]
        recordings = {row["recording"] for row in held_out}  # two of them are in other folds too
        return [row for row in train if row["recording"] not in recordings], held_out
    return train, [row for row in usable if row["split"] == "val" and not row["official_fold"]]


def read_metadata(data: Path) -> list[dict]:
    """Rows of `sounds/metadata.csv`."""
    return read_rows(data / "sounds" / "metadata.csv")


# -- Tables by stage ----------------------------------------------------------------------------------------------


def scene_rows(
    audio: str, sounds: list[scenes.Sound], labels: list[str], rng: random.Random
) -> dict[str, list[dict[str, str]]]:
    """The rows of a scene by table."""
    groups = {
        "classification": scenes.classification(sounds),
        "closed": scenes.closed(sounds, rng),
        "open": [
            *scenes.open_ended(sounds, rng),
            *scenes.yes_or_no(sounds, labels, rng),
            *scenes.multiple_choice(sounds, labels, rng),
        ],
    }
    groups["closed"] = [
        (scenes.CLOSED + prompt if rng.random() < 0.5 else prompt, answer, kind)
        for prompt, answer, kind in groups["closed"]
    ]
    return {table: [table_row(audio, question) for question in rows] for table, rows in groups.items()}


def table_row(audio: str, question: tuple[str, str, str]) -> dict[str, str]:
    """A row of a stage's table: a clip, and prompt, answer and kind of what is asked of it."""
    return dict(zip(("audio", "prompt", "answer", "kind"), (audio, *question)))


def write_stage_tables(
    train: list[dict], validation: list[dict], captions: list[str], args: argparse.Namespace, data: Path
) -> list[str]:
    """Writes `text.csv`, `classification.csv`, `closed.csv` and `open.csv` for the stages of `recipes/sam-tiny.yaml`,
    the scenes' audio, `single.csv`, of `classification.csv` what is about one sound, and `questions.csv`, yes/no and
    multiple choice about the clips that are validated on. Returns the texts that a tokenizer should know."""
    rng = random.Random(args.seed + 1)
    labels = sorted({row["label"] for row in train})
    folder = args.work / "scenes"
    folder.mkdir(parents=True, exist_ok=True)
    clips = [(row["label"], str(data / "sounds" / row["file"])) for row in train]
    tasks = scenes.draw_scenes(clips, folder, args.scenes, rng)
    with ProcessPoolExecutor(args.workers) as pool:
        lengths = tqdm(pool.map(scenes.loud_seconds, [path for _, path in clips], chunksize=16), total=len(clips))
        known = [(path, [scenes.Sound(label, 0.0, length)]) for (label, path), length in zip(clips, lengths)]
        made = tqdm(pool.map(scenes.write_scene, tasks, chunksize=16), total=len(tasks), desc="scenes", unit="clip")
        known += [(f"scenes/{Path(task[-1]).name}", sounds) for task, sounds in zip(tasks, made)]
    tables: dict[str, list[dict[str, str]]] = {"classification": [], "closed": [], "open": []}
    for audio, sounds in known:
        for table, rows in scene_rows(audio, sounds, labels, rng).items():
            tables[table] += rows
    tables["single"] = [row for row in tables["classification"] if not row["audio"].startswith("scenes/")]
    # Text alone: how AudioCaps writes captions (MIT), and our own answers, once with each prompt.
    text = [(DEFAULT_PROMPT, each, "caption") for each in captions]
    text += [(DEFAULT_PROMPT, caption(label), "caption") for label in labels for _ in range(20)]
    text += [(prompt, sentence(prompt, label), "sentence") for label in labels for prompt in SENTENCE_PROMPTS]
    tables["text"] = [table_row("", question) for question in text]
    heard = sorted({row["label"] for row in validation})
    rng_asked = random.Random(args.seed + 2)  # a separate one: the same questions for any number of scenes
    tables["questions"] = [
        table_row(str(data / "sounds" / row["file"]), question)
        for row in validation
        for ask in (scenes.yes_or_no, scenes.multiple_choice)
        for question in ask([scenes.Sound(row["label"], 0.0, 5.0)], heard, rng_asked)
    ]
    for name, rows in tables.items():
        write_table(args.work / f"{name}.csv", rows)
    asked = rng.sample([*tables["closed"], *tables["open"]], min(2000, len(tables["closed"])))
    return [row[key] for row in asked for key in ("prompt", "answer")]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    """A CSV file of rows with the same keys."""
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


# -- Tokenizer and model ------------------------------------------------------------------------------------------


def train_tokenizer(texts: list[str], more: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 2,048 entries: any text can be written, and the captions' words are whole.

    Args:
        texts (list of `str`): What the model will write; counted twenty times.
        more (list of `str`): Further English about sounds.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|audio|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts * 20 + more + ["&&"] * 5000, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=["<|audio|>"],
        clean_up_tokenization_spaces=False,
    )


def initial_model(tokenizer: PreTrainedTokenizerFast) -> tuple[SamForConditionalGeneration, SamProcessor]:
    """SAM in small: EAT of 8 x 192, connector (a), Mamba-2 of 4 x 256.

    The weights are random except for the patch embedding, which starts as the lowest two-dimensional cosines: a few
    thousand clips are better spent on other things than finding those.
    """
    processor = SamProcessor(SamFeatureExtractor(), tokenizer, connector="concatenation", patch_size=PATCH)
    config = SamConfig(
        audio_config=SamAudioConfig(
            hidden_size=192, num_hidden_layers=8, num_attention_heads=3, intermediate_size=768, patch_size=PATCH
        ),
        text_config=mamba2_config(
            hidden_size=256, num_hidden_layers=4, num_heads=8, state_size=64, vocab_size=VOCABULARY
        ),
        connector="concatenation",
        audio_token_id=processor.audio_token_id,
        separator_token_id=processor.separator_token_id,
    )
    model = SamForConditionalGeneration(config)
    place = (torch.arange(PATCH) + 0.5) * math.pi / PATCH
    cosines = torch.cos(place * torch.arange(PATCH)[:, None])  # [order, place]
    orders = sorted(((i, j) for i in range(PATCH) for j in range(PATCH)), key=lambda order: (sum(order), order))
    with torch.no_grad():
        for weight, (i, j) in zip(model.model.audio_tower.local_encoder.proj.weight, orders):
            basis = cosines[i, :, None] * cosines[j]
            weight[0] = basis / basis.norm() / 4
    return model, processor


# -- Commands -----------------------------------------------------------------------------------------------------


def prepare(args: argparse.Namespace) -> None:
    """Writes tables, scenes, evaluation layout, tokenizer and initial checkpoint."""
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    data = args.data.resolve()
    metadata = read_metadata(data)
    train, validation = training_clips(metadata, args.development)
    labels = sorted({row["label"] for row in train})
    print(f"{len(train)} clips of {len(labels)} labels to train on, {len(validation)} to validate on")

    truths = [
        {"audio": str(data / "sounds" / row["file"]), "prompt": DEFAULT_PROMPT, "answer": caption(row["label"])}
        for row in validation
    ]
    rng.shuffle(truths)
    write_table(args.work / "validation.csv", truths)

    esc50 = args.work / "esc50"
    (esc50 / "meta").mkdir(parents=True, exist_ok=True)
    (esc50 / "audio").mkdir(exist_ok=True)
    classes = sorted({row["label"] for row in metadata if row["source"] == "ESC-50"})
    with open(esc50 / "meta" / "esc50.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["filename", "fold", "target", "category"])
        for row in metadata:
            if row["official_fold"] in ("fold3", "fold4") and (data / "sounds" / row["file"]).exists():
                name = Path(row["file"]).name
                writer.writerow([name, row["official_fold"][4:], classes.index(row["label"]), row["label"]])
                if not (esc50 / "audio" / name).exists():
                    os.symlink(data / "sounds" / row["file"], esc50 / "audio" / name)

    prompts = (DEFAULT_PROMPT, CLASSIFICATION_PROMPT, *SENTENCE_PROMPTS)
    texts = [text for label in labels for text in (caption(label), label_list(label))]
    texts += [sentence(prompt, label) for label in labels for prompt in SENTENCE_PROMPTS]
    texts += [PROMPT_TEMPLATE.format(prompt=prompt) for prompt in prompts] * 20
    texts += ["Yes.", "No."] * 20
    audiocaps = data / "text" / "audiocaps" / "train.csv"  # MIT; Clotho's captions are not, and are excluded
    more = [row["caption"] for row in read_rows(audiocaps)] if audiocaps.exists() else []
    fold = "fold3" if args.development else "fold4"
    held_out = [row for row in metadata if row["official_fold"] == fold and row["label"] in PHRASES]
    held_out = [row for row in held_out if (data / "sounds" / row["file"]).exists()]
    held_out += [] if args.development else validation
    texts += write_stage_tables(train, held_out, more, args, data)
    model, processor = initial_model(train_tokenizer(texts, more))
    save_checkpoint(model, processor, args.work / "initial")
    parts = {"audio encoder": model.model.audio_tower, "connector": model.model.connector, "all": model}
    for name, module in parts.items():
        print(f"{name}: {sum(p.numel() for p in module.parameters()) / 1e6:.2f} million parameters")


def finish(args: argparse.Namespace) -> None:
    """Stores the trained model in bf16, with attribution and licence."""
    output, trained = args.work / "sam-tiny", args.work / "stages" / "stage-4" / "last"
    processor = AutoProcessor.from_pretrained(trained)
    model = SamForConditionalGeneration.from_pretrained(trained, dtype=torch.bfloat16)
    output.mkdir(parents=True, exist_ok=True)
    train, _ = training_clips(read_metadata(args.data))
    columns = ["file", "label", "description", "author_or_url", "licence", "source", "original_label"]
    with open(output / "ATTRIBUTION.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(train)
    (output / "LICENSE").write_text(LICENSE, encoding="utf-8")
    save_checkpoint(model, processor, output)  # last, so that no weights are without their licence
    for code in output.glob("*_sam.py"):
        code.unlink()  # the checkout has it; push_to_hub and save_pretrained add it to any copy


def percent(result: dict) -> dict[str, str]:
    """A share and its interval, as the card writes them."""
    low, high = result["interval"]
    return {"value": f"{100 * result['value']:.1f}", "low": f"{100 * low:.1f}", "high": f"{100 * high:.1f}"}


def card(args: argparse.Namespace) -> None:
    """Writes the model card from what was measured."""
    train, _ = training_clips(read_metadata(args.data))
    results = json.loads((args.work / "esc50.json").read_text())
    asked = json.loads((args.work / "questions.json").read_text())["by_kind"]
    classifier = json.loads((args.work / "pretrained" / "classifier.json").read_text())
    with safe_open(args.work / "sam-tiny" / "model.safetensors", "pt") as weights:
        numbers = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())
    shown = {"names": results, "binary": asked["binary"], "choice": asked["multiple_choice"], "plain": classifier}
    text = (
        Path(__file__)
        .with_name("card.md")
        .read_text(encoding="utf-8")
        .format(
            clips=len(train),
            labels=len({row["label"] for row in train}),
            sources=", ".join(sorted({row["source"] for row in train} - {"ESC-50"})),
            esc50=sum(row["source"] == "ESC-50" for row in train),
            millions=f"{numbers / 1e6:.1f}",
            correct=sum(prediction["correct"] for prediction in results["predictions"]),
            count=results["count"],
            command=(args.work / "command.txt").read_text().strip(),
            **{f"{name}_{key}": value for name, result in shown.items() for key, value in percent(result).items()},
        )
    )
    (args.work / "sam-tiny" / "README.md").write_text(text, encoding="utf-8")


LICENSE = """The weights in this directory may be used for non-commercial research.

They were trained on recordings of the ESC-50 collection, which is under CC BY-NC 3.0
(https://creativecommons.org/licenses/by-nc/3.0/), and on recordings under CC0, CC BY, the MIT licence or in the public
domain. ATTRIBUTION.csv lists every recording with its author and licence. The code of sam-alm is under the Apache
License 2.0; these weights are not.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("prepare", help="tables, scenes, tokenizer, initial checkpoint")
    first.add_argument("--development", action="store_true", help="hold ESC-50's fold 3 out")
    first.add_argument("--scenes", type=int, default=4000, help="mixtures of sounds (default: %(default)s)")
    first.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    first.add_argument("--workers", type=int, default=os.cpu_count(), help="processes; default: one a core")
    second = commands.add_parser("finish", help="weights in bf16, attribution, licence")
    third = commands.add_parser("card", help="model card")
    for each, command in ((first, prepare), (second, finish), (third, card)):
        each.set_defaults(command=command)
        each.add_argument("--data", type=Path, required=True, help="folder with sounds/metadata.csv and text/")
        each.add_argument("--work", type=Path, required=True, help="folder for what is made")
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
