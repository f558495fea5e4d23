"""The clips that `train_encoder.py` trains and validates on, in one file that travels.

    python examples/sam_tiny/encoder_data.py --data ../shared/data --teacher yamnet.safetensors --fold 3 \
        --output encoder-data.safetensors

packs the coded audio of the clips whose licence allows weights to be shared, of the fold that is held out, and of the
validation clips that are not of ESC-50, with their labels, and the teacher's weights (`yamnet.py` makes them). The
clips of `examples/audio/excluded_from_training.txt` and `duplicates.txt` are not among those to train on.
"""

import argparse
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout works without installing it
from audio_sam import load_audio

TEACHER = "teacher."  # what the names of the teacher's tensors begin with
LONGEST = 1023 * 160 + 400  # samples of 1,024 frames
FIELDS = ("file", "label", "source", "split", "official_fold", "recording")


def duplicates() -> set[str]:
    """The clips that hold a recording of a fold that is validated on, under another name."""
    lines = Path(__file__).with_name("duplicates.txt").read_text(encoding="utf-8").splitlines()
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}


def pack(data: Path, output: Path, folds: list[int], teacher: Path | None = None) -> dict[str, int]:
    """Writes the file.

    Args:
        data (`Path`): Folder with `sounds/metadata.csv`.
        output (`Path`): The file to write.
        folds (list of `int`): Folds of ESC-50 that can be held out.
        teacher (`Path`, *optional*): What `yamnet.py` has written.

    Returns:
        `dict[str, int]`: Number of clips by role.
    """
    from make_sam_tiny import excluded_files, read_metadata, training_clips

    metadata = read_metadata(data)
    train = {row["file"] for row in training_clips(metadata)[0]} - duplicates()
    names, excluded, packed = [f"fold{fold}" for fold in folds], excluded_files(), []
    for row in metadata:
        is_held_out = row["official_fold"] in names
        is_outside = row["split"] == "val" and not row["official_fold"] and row["file"] not in excluded
        if row["file"] in train or is_held_out or is_outside:
            packed.append({key: row[key] for key in FIELDS} | {"train": row["file"] in train, "outside": is_outside})
    contents = [(data / "sounds" / row["file"]).read_bytes() for row in packed]
    tensors = {
        "audio": torch.frombuffer(bytearray(b"".join(contents)), dtype=torch.uint8),
        "ends": torch.tensor([len(content) for content in contents]).cumsum(0),
    }
    facts = {"rows": json.dumps(packed), "folds": json.dumps(folds)}
    if teacher is not None:
        tensors |= {TEACHER + name: tensor for name, tensor in load_file(teacher).items()}
        with safe_open(teacher, "pt") as store:
            facts |= {TEACHER + name: value for name, value in store.metadata().items()}
    save_file(tensors, output, facts)
    roles = ("train", "outside")
    return {role: sum(row[role] for row in packed) for role in roles} | {
        name: sum(row["official_fold"] == name for row in packed) for name in names
    }


@dataclass
class Clips:
    """Decoded clips on a device.

    Attributes:
        waveforms (`torch.Tensor` of shape `[N, samples]`): Float32, right-padded with zeros.
        num_samples (`torch.Tensor` of shape `[N]`): Samples of each.
        rows (list of `dict`): What the metadata says of each.
    """

    waveforms: torch.Tensor
    num_samples: torch.Tensor
    rows: list[dict]

    @classmethod
    def decode(cls, rows: list[dict], contents: list[bytes], device: torch.device) -> "Clips":
        """Decodes files, of which at most 10.24 s are used."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            waves = [wave[:LONGEST] for wave in pool.map(load_audio, contents)]
        padded = np.zeros((len(waves), max(map(len, waves), default=1)), np.float32)
        for line, wave in zip(padded, waves):
            line[: len(wave)] = wave
        return cls(torch.from_numpy(padded).to(device), torch.tensor([len(wave) for wave in waves]).to(device), rows)

    def __len__(self) -> int:
        return len(self.rows)

    def waves(self) -> list[torch.Tensor]:
        """The clips without padding."""
        return [wave[:count] for wave, count in zip(self.waveforms, self.num_samples.tolist())]


@dataclass
class Collection:
    """What a training uses of the file.

    Attributes:
        labels (list of `str`): All labels of clips to train on, whatever fold is held out.
        classes (list of `str`): ESC-50's.
        train, held_out, outside ([`Clips`]): To train on; the fold; validation clips that are not of ESC-50.
    """

    labels: list[str]
    classes: list[str]
    train: Clips
    held_out: Clips
    outside: Clips

    @classmethod
    def load(cls, file: Path, fold: int, device: torch.device) -> "Collection":
        """Decodes the file's clips.

        Args:
            file (`Path`): What [`pack`] wrote.
            fold (`int`): The fold of ESC-50 that is held out: none of its recordings is trained on.
            device (`torch.device`): Where the waveforms lie.

        Raises:
            ValueError: The file has no clips of this fold.
        """
        with safe_open(file, "pt") as store:
            rows, audio, ends = (
                json.loads(store.metadata()["rows"]),
                store.get_tensor("audio").numpy(),
                store.get_tensor("ends").tolist(),
            )
        contents = [audio[begin:end].tobytes() for begin, end in zip([0, *ends], ends)]
        held_out = [index for index, row in enumerate(rows) if row["official_fold"] == f"fold{fold}"]
        if not held_out:
            raise ValueError(f"--fold: got {fold}, of which {file} has no clips; pack them with --fold {fold}.")
        recordings = {rows[index]["recording"] for index in held_out}
        roles = {
            "train": [i for i, row in enumerate(rows) if row["train"] and row["recording"] not in recordings],
            "held_out": held_out,
            "outside": [index for index, row in enumerate(rows) if row["outside"]],
        }
        clips = {
            role: Clips.decode([rows[i] for i in chosen], [contents[i] for i in chosen], device)
            for role, chosen in roles.items()
        }
        labels = sorted({row["label"] for row in rows if row["train"]})
        return cls(labels, sorted({row["label"] for row in rows if row["source"] == "ESC-50"}), **clips)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with sounds/metadata.csv")
    parser.add_argument("--teacher", type=Path, help="what yamnet.py has written")
    parser.add_argument("--fold", type=int, action="append", help="of ESC-50; may be repeated (default: 3 and 4)")
    parser.add_argument("--output", type=Path, required=True, help="the file to write, .safetensors")
    args = parser.parse_args()
    counts = pack(args.data, args.output, args.fold or [3, 4], args.teacher)
    print(f"{counts}, {args.output.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
