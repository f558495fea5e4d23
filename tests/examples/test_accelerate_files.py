"""The settings for `accelerate launch`, as accelerate itself reads them."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin

from modeling_sam import SamForConditionalGeneration

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("name, kind", [("two_gpu", "MULTI_GPU"), ("fsdp", "FSDP")])
def test_accelerate_reads_the_file(name, kind):
    path = str(EXAMPLES / f"accelerate_{name}_bf16.yaml")
    config = load_config_from_file(path)  # an unknown key is an error
    assert type(config) is ClusterConfig
    assert (config.distributed_type, config.num_processes, config.mixed_precision) == (kind, 2, "bf16")
    words = launch_command_parser().parse_args(["--config_file", path, "-m", "sam_alm", "train", "E6"])
    assert words.module and words.training_script == "sam_alm" and words.training_script_args == ["train", "E6"]


def test_fsdp_wraps_the_blocks_of_the_model():
    options = load_config_from_file(str(EXAMPLES / "accelerate_fsdp_bf16.yaml")).fsdp_config
    wrapped = options["fsdp_transformer_layer_cls_to_wrap"].split(",")
    assert sorted(wrapped) == sorted(SamForConditionalGeneration._no_split_modules)
    options = {key.removeprefix("fsdp_"): value for key, value in options.items()}
    names = {"version": "fsdp_version", "offload_params": "cpu_offload"}
    policy, _ = options.pop("auto_wrap_policy"), options.pop("transformer_layer_cls_to_wrap")
    assert policy == "TRANSFORMER_BASED_WRAP"
    plugin = FullyShardedDataParallelPlugin(
        **{names.get(key, key): value for key, value in options.items()},
        auto_wrap_policy=policy.lower(),
        transformer_cls_names_to_wrap=wrapped,
    )
    assert plugin.fsdp_version == 2 and plugin.state_dict_type.name == "FULL_STATE_DICT"
