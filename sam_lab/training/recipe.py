"""Recipes: a training of several stages as data, read from YAML and checked before anything is loaded.

Nothing here needs torch. The package's recipes lie in `recipes/` and are found by name. A recipe may name another one
as its `base`, whose keys it then changes.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.utils import HFValidationError, validate_repo_id

from configuration_sam import CONNECTORS, LANGUAGE_MODEL_SIZES
from sam_lab.data.published import CAPTION_RULES, READINGS
from sam_lab.training.library import RECIPES, find_recipe

PARTS = ("connector", "encoder", "lora", "language_model")
# What a stage takes from the recipe unless it sets its own.
INHERITED = ("text_cutoff", "global_batch_size", "micro_batch_size", "warmup_steps", "augment")
CHOICES = {
    "connector": CONNECTORS,
    "size": tuple(LANGUAGE_MODEL_SIZES),
    "encoder_attention": ("flash_attention_2", "sdpa", "eager"),
    "base_dtype": ("auto", "float32", "bfloat16"),
    "precision": ("bf16", "fp32"),
    "schedule": ("linear", "cosine"),
    "features": ("workers", "device"),
    "incomplete": ("error", "keep"),
    "format": ("records", "shards", "openaqa", "reasonaqa", "openreasonaqa", "table"),
    "reading": READINGS,
    "caption_rule": CAPTION_RULES,
    "init": ("previous", "model"),
    "augment": ("none", "everything", "in_place"),
    "trains": PARTS,
}
POSITIVE = (
    "learning_rate encoder_learning_rate epochs max_seconds global_batch_size micro_batch_size text_cutoff pack_to "
    "hand_over_step logging_steps save_steps rows max_grad_norm"
).split()
NOT_NEGATIVE = "lora_rank warmup_steps weight_decay num_workers evaluation_rows generated_rows".split()
SHARES = ("closed_prefix", "max_missing", "max_broken")
BELOW_ONE = ("lora_dropout", "adam_beta2")
TYPES = {str: "text", int: "an integer", float: "a number", bool: "true or false"}
PUBLISHED = ("openaqa", "reasonaqa", "openreasonaqa")  # formats that are converted when a run starts


@dataclass(frozen=True)
class DataSource:
    """Rows to train on.

    Args:
        path (`str`): A file or folder, relative to the recipe's `data_root`.
        format (`str`, *optional*, defaults to `"records"`): `"records"` (a folder written by `write_records`),
            `"shards"` (other Parquet or JSON lines, a file or a folder, with the columns `audio`, `prompt` and
            `answer`; they are streamed, may be larger than memory, and missing audio counts as broken),
            `"openaqa"` or `"reasonaqa"` (the published JSON), `"openreasonaqa"` (OpenAQA's JSON, mixed with the files
            of `reasonaqa`), or `"table"` (anything that `read_table` reads).
        split (`str`, *optional*, defaults to `"train"`): Split of a table that has several.
        audio_roots (list of `str`, *optional*): `FROM=TO`, where audio files of published records are now; tried
            before the recipe's.
        closed_prefix (`float`, *optional*, defaults to 0): Probability with which a closed question of OpenAQA gets
            LTU's prefix "Closed-ended question: ". In the published `openaqa_5.6M.json` half of them have it already.
        skip_unanswerable (`bool`, *optional*, defaults to `False`): Skip answers such as "cannot be determined".
        max_missing (`float`, *optional*, defaults to 0.05): Largest share of rows whose audio may be missing; of
            published files also of each source of at least 100 rows.
        missing_sources (list of `str`, *optional*): Sources within published files whose audio may all be missing.
        rows (`int`, *optional*): Published number of rows, for planning without the data. For `"openreasonaqa"`: how
            many to draw, 3.8 million by default.
        reasonaqa (list of `str`, *optional*): ReasonAQA's files for `"openreasonaqa"`, relative to `data_root`.
        reading, caption_rule (`str`, *optional*): How that mix is drawn, see [`OpenReasonAQA`].
    """

    path: str
    format: str = "records"
    split: str = "train"
    audio_roots: list[str] = field(default_factory=list)
    closed_prefix: float = 0.0
    skip_unanswerable: bool = False
    max_missing: float = 0.05
    missing_sources: list[str] = field(default_factory=list)
    rows: int | None = None
    reasonaqa: list[str] = field(default_factory=list)
    reading: str = "whole"
    caption_rule: str = "all_open"


@dataclass(frozen=True)
class Stage:
    """One stage of a curriculum.

    Args:
        number (`int`): Its place in the order, and its key in the file.
        name (`str`): Its name in printed lines.
        trains (list of `str`): Some of `"connector"`, `"encoder"`, `"lora"` and `"language_model"`; the rest is
        frozen.
        learning_rate (`float`): Peak learning rate.
        encoder_learning_rate (`float`, *optional*): That of the encoder, if it differs: at rates that suit a fresh
            language model, the tokens of a small post-norm encoder collapse into one vector.
        data (list of `str`): Names of the recipe's data sources.
        weights (list of `float`, *optional*): A weight for each data source: an epoch has as many rows as all of them
            together, in these proportions. By default every row comes once an epoch (twice if its source is named
            twice).
        epochs (`float`, *optional*): Passes over the data; or
        max_seconds (`float`, *optional*): seconds of training, in one process; the learning rate then rises for a
            twentieth of the time and falls as a cosine, whatever the recipe's `schedule`. Exactly one of the two.
        init (`str`, *optional*, defaults to `"previous"`): Start from the weights of the previous stage, or from the
            recipe's `"model"`.
        hand_over_step (`int`, *optional*): The step whose weights the next stage gets and answers are generated with;
            by default the last.
        text_cutoff, global_batch_size, micro_batch_size, warmup_steps, augment (*optional*): The recipe's by default.
    """

    number: int
    name: str
    trains: list[str]
    learning_rate: float
    data: list[str]
    encoder_learning_rate: float | None = None
    weights: list[float] | None = None
    epochs: float | None = None
    max_seconds: float | None = None
    init: str = "previous"
    hand_over_step: int | None = None
    text_cutoff: int | None = None
    global_batch_size: int = 256
    micro_batch_size: int = 8
    warmup_steps: int = 100
    augment: str = "none"


@dataclass(frozen=True)
class Recipe:
    """A whole training: the model, its parts, the optimiser, the data and the stages.

    Args:
        name (`str`): The file's name without its suffix.
        model (`str`): A SAM directory as `sam-alm convert` writes it, or a Hub id.
        base_id (`str`, *optional*): The Hub id of that checkpoint, if `model` is a directory: adapters name it as
            their base, so that they can be pushed; by default they name the directory's absolute path.
        stages (list of [`Stage`]): In their order.
        data (dict of [`DataSource`]): By name.
        size, connector (`str`, *optional*): Size and connector that the model must have; they suffice for planning
            without it.
        lora_rank (`int`, *optional*, defaults to 0): Rank of the adapters, alpha is twice that; with 0 there are none,
            and stages may train the whole language model.
        lora_dropout (`float`, *optional*, defaults to 0.05): Dropout before the adapters (LTU).
        joint_encoder (`bool`, *optional*, defaults to `True`): Whether any stage may train the encoder.
        encoder_from (`str`, *optional*): Start with this encoder: that of a finished run (the run's output folder), or
            a folder that [`SamAudioModel`] loads.
        encoder_attention (`str`, *optional*, defaults to `"sdpa"`): Or `"flash_attention_2"` (the paper), or
            `"eager"`. It must be installed: there is no silent fallback.
        base_dtype (`str`, *optional*, defaults to `"auto"`): Parameter type of frozen weights and of saved models:
            that of the file, or `"float32"` or `"bfloat16"`. Trained weights are float32.
        precision (`str`, *optional*, defaults to `"bf16"`): Autocast; or `"fp32"`, with everything in float32.
        seed (`int`, *optional*, defaults to 0): Seed of everything random.
        text_cutoff (`int`, *optional*, defaults to 108): Text tokens of a row that remain, LTU's `cutoff_len`.
        global_batch_size (`int`, *optional*, defaults to 256): Rows of an optimiser step, over all processes.
        micro_batch_size (`int`, *optional*, defaults to 8): Rows that a process passes through the model at once.
        warmup_steps (`int`, *optional*, defaults to 100): Steps in which the learning rate rises.
        schedule (`str`, *optional*, defaults to `"linear"`): How it then falls to zero; or `"cosine"`.
        weight_decay, adam_beta2, max_grad_norm (`float`, *optional*): Of AdamW, and the norm that gradients are
            clipped to.
        recompute (`bool`, *optional*, defaults to `False`): Gradient checkpointing: less memory, more time.
        pack_to (`int`, *optional*): Pack several rows into one of at most so many positions.
        features (`str`, *optional*, defaults to `"workers"`): Where log-mel is computed: in the data workers,
            or on the `"device"`.
        num_workers (`int`, *optional*, defaults to 0): Processes that read audio, for each training process.
        cache_features (`bool`, *optional*, defaults to `False`): Compute log-mel once and keep it on the device.
        augment (`str`, *optional*, defaults to `"none"`): Change the training clips at random ([`AugmentLogMel`]):
            `"everything"`, or `"in_place"`, which preserves the order and the number of sounds.
        train_on_prompt (`bool`, *optional*, defaults to `False`): Also train on the prompt's text (LTU does, the paper
            does not).
        max_broken (`float`, *optional*, defaults to 0.01): Largest share of a stage's rows whose audio may be
            unreadable; a single source may exceed it only by chance.
        incomplete (`str`, *optional*, defaults to `"error"`): Count audio files that break off as unreadable, or
            `"keep"` what is there of them.
        data_root (`str`, *optional*, defaults to `"."`): The folder that paths of data are relative to.
        records (`str`, *optional*): Folder for the records made from published files, by default OUTPUT/records.
            Recipes on the same data may share it.
        audio_roots (list of `str`, *optional*): `FROM=TO`, where the audio files of published records are now.
        validation (`str`, *optional*): Name of the data source for evaluation, on `evaluation_rows` of it (the loss,
            which selects `best/`) and `generated_rows` (answers, at a stage's end); all of them if it has fewer.
        logging_steps, save_steps (`int`, *optional*): Steps between logs, and between checkpoints and evaluations.
        keep_checkpoints (`bool`, *optional*, defaults to `False`): Do not delete the checkpoints for resuming, with
            the optimiser's state, of finished stages.
    """

    name: str
    model: str
    stages: list[Stage]
    data: dict[str, DataSource]
    size: str | None = None
    connector: str | None = None
    lora_rank: int = 0
    lora_dropout: float = 0.05
    joint_encoder: bool = True
    encoder_from: str | None = None
    encoder_attention: str = "sdpa"
    base_dtype: str = "auto"
    precision: str = "bf16"
    seed: int = 0
    text_cutoff: int | None = 108
    global_batch_size: int = 256
    micro_batch_size: int = 8
    warmup_steps: int = 100
    schedule: str = "linear"
    weight_decay: float = 0.0
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0
    recompute: bool = False
    pack_to: int | None = None
    features: str = "workers"
    num_workers: int = 0
    cache_features: bool = False
    augment: str = "none"
    train_on_prompt: bool = False
    max_broken: float = 0.01
    incomplete: str = "error"
    data_root: str = "."
    records: str | None = None
    base_id: str | None = None
    audio_roots: list[str] = field(default_factory=list)
    validation: str | None = None
    evaluation_rows: int = 512
    generated_rows: int = 64
    logging_steps: int = 10
    save_steps: int = 500
    keep_checkpoints: bool = False

    @property
    def trained_parts(self) -> list[str]:
        """The parts that any stage trains, in the order of `PARTS`."""
        return [part for part in PARTS if any(part in stage.trains for stage in self.stages)]

    def chosen(self, number: int | None) -> list[Stage]:
        """The stage of that number, all of them for `None`.

        Raises:
            ValueError: The recipe has no such stage.
        """
        stages = [stage for stage in self.stages if number in (None, stage.number)]
        if not stages:
            numbers = ", ".join(str(stage.number) for stage in self.stages)
            raise ValueError(f"stage: got {number}, the recipe {self.name} has {numbers}.")
        return stages

    def previous(self, stage: Stage) -> Stage | None:
        """The stage whose weights a stage starts from; `None` is the recipe's model."""
        place = self.stages.index(stage)
        return self.stages[place - 1] if place and stage.init == "previous" else None

    def path(self, source: str) -> Path:
        """The file or folder of a data source."""
        return Path(self.data_root).expanduser() / Path(self.data[source].path).expanduser()


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        path (`str` or `Path`): The name of one of the package's recipes, such as `"E6"` (see
            [`~library.recipe_names`]), or a YAML file. Its key `base` names another file, in the same folder or else
            among the package's recipes: this file's keys replace those of the base, mappings (`data`, `stages`, a
            stage) are merged key by key, lists are replaced.
        overrides (list of `str`, *optional*): `KEY=VALUE` with dots between the keys of nested mappings, such as
            `stages.2.learning_rate=5e-5`; the values are YAML.

    Returns:
        [`Recipe`].

    Raises:
        FileNotFoundError: The file, or its base, does not exist.
        ValueError: An unknown name, no YAML, an unknown key, a value of a wrong type or out of range, a missing key,
            an unknown part or data source, stages that contradict the recipe. The message names the file (or `--set`)
            and the key.
    """
    path = find_recipe(path)
    values = _merged(path, [])
    for override in overrides:
        values = _merge(values, _checked(Recipe, _parse_override(override), f"--set {override}"))
    return _build(values, path)


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values in the form of its file, for writing and comparing."""
    values = dataclasses.asdict(recipe)
    values["stages"] = {stage.pop("number"): stage for stage in values["stages"]}
    return values


# -- Reading ------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.1, except that `1e-3` is a number and a repeated key is an error."""

    def construct_mapping(self, node, deep=False):
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in own]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]} comes twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got {type(values).__name__}, expected a mapping of keys.")
    return values


def _merged(path: Path, seen: list[Path]) -> dict[str, Any]:
    if path in seen:
        raise ValueError(f"{path}: base: the files {', '.join(map(str, seen))} name each other.")
    values = _read(path)
    base = values.pop("base", None)
    values = _checked(Recipe, values, str(path))
    if base is None:
        return values
    if not isinstance(base, str) or Path(base).name != base:
        raise ValueError(
            f"{path}: base: got {base!r}, expected the name of a file of the same folder or of the package's recipes."
        )
    found = next((folder / base for folder in (path.parent, RECIPES) if (folder / base).is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"{path}: base: there is no file {str(path.parent / base)!r}, nor a recipe of that name in the package; "
            "correct the name."
        )
    return _merge(_merged(found, [*seen, path]), values)


def _merge(below: dict[Any, Any], above: dict[Any, Any]) -> dict[Any, Any]:
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        result[key] = _merge(below[key], value) if both else value
    return result


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set: got {override!r}, expected KEY=VALUE such as stages.2.learning_rate=5e-5.")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {override}: the value is no YAML: {error}") from error
    for name in reversed(key.strip().split(".")):
        value = {int(name) if name.isdecimal() else name: value}
    return value


# -- Checking -----------------------------------------------------------------------------------------------------


def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    hints.pop("number" if kind is Stage else "name" if kind is Recipe else "", None)
    if kind is Recipe:
        hints["stages"] = dict[int, Stage]
    return hints


def _unexpected(file: str, key: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{file}: {key}: got {value!r}, expected {expected}.")


def _checked(kind: type, values: Any, file: str, where: str = "") -> dict[str, Any]:
    """The values of one file with their types checked; keys may be missing, another file may have them."""
    if not isinstance(values, dict):
        raise _unexpected(file, where.rstrip("."), values, "a mapping of keys")
    hints = _hints(kind)
    for key in values:
        if key not in hints:
            raise ValueError(f"{file}: unknown key {where}{key}; expected one of {', '.join(sorted(hints))}.")
    return {key: _typed(value, hints[key], file, f"{where}{key}") for key, value in values.items()}


def _typed(value: Any, hint: Any, file: str, key: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        if value is None:
            return None
        return _typed(value, next(each for each in inner if each is not types.NoneType), file, key)
    if origin is dict:
        if not isinstance(value, dict) or not value:
            raise _unexpected(file, key, value, "a mapping that is not empty")
        for name in value:
            if type(name) is not inner[0]:
                raise ValueError(f"{file}: {key}: got the key {name!r}, expected {TYPES[inner[0]]}.")
        return {name: _checked(inner[1], item, file, f"{key}.{name}.") for name, item in value.items()}
    if origin is list:
        if not isinstance(value, list):
            raise _unexpected(file, key, value, "a list")
        return [_typed(item, inner[0], file, f"{key}[{index}]") for index, item in enumerate(value)]
    if hint is int and type(value) is float and value.is_integer():
        value = int(value)  # 1.3e6
    is_number = type(value) in (int, float)
    if not (is_number if hint is float else type(value) is hint):
        raise _unexpected(file, key, value, TYPES[hint])
    if expected := _out_of_range(key.rsplit(".", 1)[-1].split("[")[0], value):
        raise _unexpected(file, key, value, expected)
    return float(value) if hint is float else value


def _out_of_range(name: str, value: Any) -> str | None:
    """What a key accepts, where it does not accept this value."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if name in CHOICES and value not in CHOICES[name]:
        return f"one of {', '.join(CHOICES[name])}"
    if name in POSITIVE and not value > 0:
        return "a positive number"
    if name in NOT_NEGATIVE and not value >= 0:
        return "zero or more"
    if name in SHARES and not 0 <= value <= 1:
        return "a number from 0 to 1"
    if name in BELOW_ONE and not 0 <= value < 1:
        return "a number from 0 to less than 1"
    if name == "seed" and not 0 <= value < 2**31:
        return "an integer from 0 to less than 2^31"
    return None


def _build(values: dict[str, Any], path: Path) -> Recipe:
    _require(Recipe, values, path, "")
    data = {}
    for name, item in values["data"].items():
        _require(DataSource, item, path, f"data.{name}.")
        data[name] = DataSource(**item)
    # defaults of simple fields are attributes of the class
    inherited = {name: values.get(name, getattr(Recipe, name)) for name in INHERITED}
    stages = []
    for number, item in sorted(values["stages"].items()):
        _require(Stage, item, path, f"stages.{number}.")
        stages.append(Stage(number=number, **{**inherited, **item}))
    recipe = Recipe(name=path.stem, **{**values, "data": data, "stages": stages})
    for key, problem in _problems(recipe):
        raise ValueError(f"{path}: {key}: {problem}")
    return recipe


def _require(kind: type, values: dict[str, Any], path: Path, where: str) -> None:
    for item in dataclasses.fields(kind):
        is_needed = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if is_needed and item.name in _hints(kind) and item.name not in values:
            raise ValueError(f"{path}: {where}{item.name} is missing; neither the file nor its base has it.")


def _problems(recipe: Recipe) -> Iterable[tuple[str, str]]:
    """What contradicts itself between the keys of a recipe, as (key, problem)."""
    if recipe.validation is not None and recipe.validation not in recipe.data:
        names = ", ".join(recipe.data)
        yield "validation", f"got {recipe.validation!r}, expected one of the data sources {names}."
    if recipe.validation is not None and not recipe.evaluation_rows:
        yield "evaluation_rows", "got 0 with a validation, expected some, or validation: null."
    if recipe.save_steps % recipe.logging_steps:
        wanted = "expected a multiple of it: else the losses logged after resuming are means over other steps."
        yield "save_steps", f"got {recipe.save_steps} with logging_steps {recipe.logging_steps}, {wanted}"
    if recipe.base_id is not None:
        try:
            validate_repo_id(recipe.base_id)
        except HFValidationError as error:
            yield "base_id", f"got {recipe.base_id!r}, expected a Hub id: {error}"
    if recipe.cache_features and (recipe.pack_to is not None or recipe.train_on_prompt):
        yield "cache_features", "got true with pack_to or train_on_prompt, expected neither."
    for name, source in recipe.data.items():
        with_format = f"with the format {source.format}, expected"
        if bool(source.reasonaqa) != (source.format == "openreasonaqa"):
            wanted = "files with openreasonaqa alone."
            yield f"data.{name}.reasonaqa", f"got {source.reasonaqa} {with_format} {wanted}"
        for key in ("audio_roots", "missing_sources"):
            if (values := getattr(source, key)) and source.format not in PUBLISHED:
                wanted = f"them with {', '.join(PUBLISHED)} alone."
                yield f"data.{name}.{key}", f"got {values} {with_format} {wanted}"
    for stage in recipe.stages:
        for key, problem in _stage_problems(recipe, stage):
            yield f"stages.{stage.number}.{key}", problem


def _stage_problems(recipe: Recipe, stage: Stage) -> Iterable[tuple[str, str]]:
    if not stage.trains:
        yield "trains", "got an empty list, expected what the stage trains."
    if "lora" in stage.trains and not recipe.lora_rank:
        yield "trains", "got 'lora' with lora_rank 0, expected a rank."
    if "language_model" in stage.trains and recipe.lora_rank:
        yield "trains", "got 'language_model' with a lora_rank, expected one of the two."
    if "encoder" in stage.trains and not recipe.joint_encoder:
        yield "trains", "got 'encoder' with joint_encoder false, expected other parts, or joint_encoder: true."
    if stage.encoder_learning_rate is not None and "encoder" not in stage.trains:
        yield "encoder_learning_rate", "got it in a stage that does not train the encoder; delete it."
    if not stage.data:
        yield "data", "got an empty list, expected names of data sources."
    for name in stage.data:
        if name not in recipe.data:
            yield "data", f"got {name!r}, expected some of the data sources {', '.join(recipe.data)}."
    if stage.weights is not None and (len(stage.weights) != len(stage.data) or min(stage.weights) <= 0):
        yield "weights", f"got {stage.weights}, expected a positive number for each of {stage.data}."
    if stage.weights is not None and recipe.cache_features:
        yield "weights", "expected none with cache_features; a source named twice comes twice an epoch."
    if (stage.epochs is None) == (stage.max_seconds is None):
        yield "epochs", "expected exactly one of epochs and max_seconds."
    if stage.hand_over_step is not None and stage.max_seconds is not None:
        yield "hand_over_step", "got it with max_seconds, which may end the stage before; expected epochs."
