"""Small things that the tests share."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow
import torch
from pyarrow import parquet
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from configuration_sam import SamAudioConfig, SamConfig, mamba2_config
from modeling_sam import SamForConditionalGeneration
from processing_sam import SamFeatureExtractor, SamProcessor

NOTHING_OPEN = Path(__file__).with_name("leave_nothing_open.py")  # instead of `-m sam_alm` in several processes

# -- Tokenizer ----------------------------------------------------------------------------------------------------


def tiny_tokenizer(audio_token: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 259 entries, which reads any text, needs no file and no training.

    `<|endoftext|>` is 0, the bytes are 1 to 256, the ordinary token `&&` is 257 and the special token `<|audio|>`
    is 258. As in GPT-NeoX's, end of text is also the beginning and there is no padding token.

    Args:
        audio_token: Whether it has `<|audio|>`. Otherwise the processor adds it, again as 258.
    """
    vocabulary = {"<|endoftext|>": 0}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[character] = len(vocabulary)
    vocabulary["&&"] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("&", "&")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"] + ["<|audio|>"] * audio_token)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        **({"additional_special_tokens": ["<|audio|>"]} if audio_token else {}),
    )


# -- Models -------------------------------------------------------------------------------------------------------


def tiny_config(connector: str = "concatenation", **text) -> SamConfig:
    """A model of about ten thousand parameters with the real spectrogram's 64 x 8 patches and ids of `tiny_tokenizer`."""
    sizes = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "head_dim": 16,
        "num_heads": 4,
        "state_size": 16,
        "vocab_size": 272,
        "chunk_size": 16,
    }
    return SamConfig(
        audio_config=SamAudioConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64),
        text_config=mamba2_config(**{**sizes, **text}),
        connector=connector,
        audio_token_id=258,
        separator_token_id=257,
    )


def tiny_model(connector: str = "concatenation", seed: int = 0, **text):
    """`tiny_config`'s model in evaluation mode, with weights so large that every part of it matters.

    With fresh weights the logits hardly depend on the input, so that comparing two computations proves little.
    """
    torch.manual_seed(seed)
    model = SamForConditionalGeneration(tiny_config(connector, **text)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "conv1d" not in name:
                parameter.normal_(std=1.5 / parameter[0].numel() ** 0.5)
            elif name.endswith("bias") and "dt_bias" not in name:
                parameter.normal_(std=0.3)
    return model


def tiny_inputs(texts=("What do you hear?",), clips=1, connector: str = "concatenation", seed: int = 0) -> dict:
    """Left-padded `input_ids`, `attention_mask` and random `input_features`, every row with `clips` clips."""
    config = tiny_config(connector)
    generator = torch.Generator().manual_seed(seed)
    tokenizer = tiny_tokenizer()
    slots = [258 if audio else 257 for audio in config.audio_slot_pattern]
    rows = [slots * clips + tokenizer(text)["input_ids"] for text in texts]
    length = max(map(len, rows))
    inputs = {
        "input_ids": torch.tensor([[0] * (length - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
    }
    if clips:
        inputs["input_features"] = torch.randn(len(rows) * clips, 1024, 128, generator=generator)
    return inputs


def tiny_processor(connector: str = "concatenation"):
    """The processor of `tiny_model`."""
    return SamProcessor(SamFeatureExtractor(), tiny_tokenizer(), connector=connector)


# -- Sound --------------------------------------------------------------------------------------------------------


def tone(seconds: float = 1.0, rate: int = 16000, frequency: float = 440.0) -> np.ndarray:
    """A sine of amplitude 0.3, float32."""
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


# -- Records and batches ------------------------------------------------------------------------------------------


def tiny_batches(source, processor, batch_size: int, **options):
    """`RecordBatches` with the options of its order and its collator in one row."""
    from sam_lab.data.batches import RecordBatches
    from sam_lab.data.collation import RowCollator
    from sam_lab.data.order import BatchOrder

    own = {name: options.pop(name) for name in ("max_broken", "start_step") if name in options}
    collating = {name: options.pop(name) for name in RowCollator.__dataclass_fields__ if name in options}
    return RecordBatches(
        BatchOrder(source, processor, batch_size, **options), RowCollator(processor, **collating), **own
    )


def load(batches, num_workers: int = 0) -> list[dict]:
    """The micro-batches of one pass."""
    return list(batches.load(num_workers))


def write_shards(folder: Path, records, sizes) -> Path:
    """A folder of records in Parquet shards of these sizes, with its summary."""
    folder.mkdir()
    columns = ("audio", "prompt", "answer", "source", "kind")
    schema = pyarrow.schema([(name, pyarrow.string()) for name in columns])
    begin = 0
    for number, size in enumerate(sizes):
        table = pyarrow.Table.from_pylist(records[begin : begin + size], schema)
        parquet.write_table(table, folder / f"part-{number:05}.parquet")
        begin += size
    assert begin == len(records)
    (folder / "summary.json").write_text(json.dumps({"rows": len(records)}))
    return folder


# -- Scripts ------------------------------------------------------------------------------------------------------


def script(path: str) -> ModuleType:
    """A script, such as `"examples/sam_tiny/scenes.py"`, as a module; it may import its neighbours."""
    folder = str((Path(__file__).parents[1] / path).parent)
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(Path(path).stem)
