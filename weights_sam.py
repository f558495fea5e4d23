"""Which tensors of a checkpoint a model takes: all of them, or an error."""

import copy
from typing import Any

from transformers import PreTrainedModel


class SamWeightsMixin:
    """Loading for [`SamPreTrainedModel`]: nothing is left out or starts at random without a word."""

    other_parts: tuple[str, ...] = ()  # how tensors of a whole checkpoint begin that a class leaves to others

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *args,
        output_loading_info=False,
        ignore_mismatched_sizes=False,
        **kwargs,
    ):
        """As in transformers, which only logs what a checkpoint lacks or has too much; here that is an error.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): The checkpoint.
            output_loading_info (`bool`, *optional*, defaults to `False`): Return also what is missing, unexpected or
                of another shape, and leave it to the caller to judge the first two.
            ignore_mismatched_sizes (`bool`, *optional*, defaults to `False`): Load all the same: what has no place is
                left out, what is missing or of another shape starts at random.
            args, kwargs: As in transformers.

        Raises:
            ValueError: Tensors that the configuration has no place for, or parameters without a tensor.
        """
        model, loading_info = super().from_pretrained(
            pretrained_model_name_or_path,
            *args,
            output_loading_info=True,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            **kwargs,
        )
        own = model.__dict__.pop("own_loading_info")  # the other one may be an adapter's
        if output_loading_info:
            return model, loading_info
        if not ignore_mismatched_sizes:
            check_loaded(cls.__name__, pretrained_model_name_or_path, own.missing_keys, own.unexpected_keys)
        return model

    @staticmethod
    def _finalize_model_loading(model, load_config, loading_info):
        """As in transformers, but the other parts of a whole checkpoint are expected."""
        others = {key for key in loading_info.unexpected_keys if key.startswith(model.other_parts)}
        loading_info.unexpected_keys -= others
        loading_info = PreTrainedModel._finalize_model_loading(model, load_config, loading_info)
        model.__dict__["own_loading_info"] = loading_info
        return loading_info

    def load_state_dict(self, state_dict, strict=True, assign=False):
        """As in torch; a tied weight that the file leaves out, as saved files do, is its twin's."""
        absent = {name: twin for name, twin in self.all_tied_weights_keys.items() if name not in state_dict}
        state_dict = copy.copy(state_dict)  # with torch's notes on it
        state_dict.update({name: state_dict[twin] for name, twin in absent.items() if twin in state_dict})
        result = super().load_state_dict(state_dict, strict, assign)
        if assign:
            self.tie_weights()
        return result


def check_loaded(name: str, source: Any, missing: set[str], unused: set[str]) -> None:
    """Refuses weights that were loaded in part: the rest would be random, or left out.

    Args:
        name (`str`): Of the model's class.
        source: Where the weights are from.
        missing, unused (set of `str`): Parameters without a tensor, and tensors without a place.

    Raises:
        ValueError: There are some.
    """
    found = f"the checkpoint {str(source)!r}" if source is not None else "state_dict"
    if unused:
        raise ValueError(
            f"{name}: {found} has {len(unused)} tensors that its configuration has no place for, such as "
            f"{min(unused)}, expected one for each; correct config.json (numbers of layers, biases), or load it with "
            "the class that it was saved with. With ignore_mismatched_sizes=True they are left out."
        )
    if missing:
        raise ValueError(
            f"{name}: {found} lacks {len(missing)} tensors that its configuration asks for, such as {min(missing)}; "
            "correct config.json (numbers of layers, tie_word_embeddings), or get the whole checkpoint. With "
            "ignore_mismatched_sizes=True they start at random."
        )
