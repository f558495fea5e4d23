"""How SAM takes part in transformers' `generate`: what goes into each step, and how rows with clips are repeated."""

from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin

try:
    from .mamba_sam import given_cache
except ImportError:
    from mamba_sam import given_cache


class SamGenerationMixin(GenerationMixin):
    """`generate` for [`SamForConditionalGeneration`]: greedy by default, on a [`SamCache`]."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the first forward makes its own cache

    @staticmethod
    def default_generation_config(config) -> GenerationConfig:
        """Greedy decoding up to LTU's 400 new tokens, with the slot token ruled out."""
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=400,
            pad_token_id=config.pad_token_id,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            suppress_tokens=None if config.audio_token_id is None else [config.audio_token_id],
        )

    def prepare_inputs_for_generation(
        self,
        input_ids,
        past_key_values=None,
        attention_mask=None,
        inputs_embeds=None,
        input_features=None,
        use_cache=True,
        cache=None,
        **kwargs,
    ):
        cache = given_cache(cache, past_key_values)
        seen = 0 if cache is None else cache.get_seq_length()
        inputs: dict[str, Any] = {"cache": cache, "use_cache": use_cache}
        for name in ("output_hidden_states", "logits_to_keep"):
            if name in kwargs:
                inputs[name] = kwargs[name]
        if seen > 0:
            if not use_cache:
                raise ValueError("use_cache: got False with a cache, which every step would change; leave one out.")
            # The state holds the audio and the prompt. What is new stands behind what was read before: the mask covers
            # both, and so do the ids, unless the prompt came embedded.
            if attention_mask is not None:
                new = attention_mask.shape[1] - seen
            else:  # transformers drops a mask of ones and says how many positions are new, unless only those came
                new = kwargs.get("next_sequence_length")
                new = input_ids.shape[1] if new is None else new
            if new < 1:
                raise ValueError(
                    f"attention_mask: covers {new + seen} positions, but the cache has read {seen} "
                    "already; pass a mask over what was read and what is new, or input_ids that begin with what was "
                    "read."
                )
            if inputs_embeds is not None and kwargs.get("is_first_iteration"):
                inputs["inputs_embeds"] = inputs_embeds[:, -new:]
            else:
                inputs["input_ids"] = input_ids[:, -new:].contiguous()
            if new > 1:
                inputs["attention_mask"] = attention_mask
                inputs["input_features"] = input_features
            return inputs
        inputs.update(attention_mask=attention_mask, input_features=input_features)
        if inputs_embeds is None:
            inputs["input_ids"] = input_ids
        else:
            # Without a cache every step reads the embedded prompt again, and behind it what was generated.
            new = input_ids.shape[1] if attention_mask is None else attention_mask.shape[1] - inputs_embeds.shape[1]
            tail = self.get_input_embeddings()(input_ids[:, input_ids.shape[1] - new :])
            inputs["inputs_embeds"] = torch.cat([inputs_embeds, tail.to(inputs_embeds.dtype)], dim=1)
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size=1, is_encoder_decoder=False, input_ids=None, input_features=None, **model_kwargs
    ):
        # Clips are counted along the rows that hold their slots, so they are repeated by row, not one by one.
        if expand_size > 1 and input_features is not None and self.config.audio_token_id is not None:
            clips = (input_ids == self.config.audio_token_id).sum(dim=1) // self.config.num_audio_features
            if int(clips.sum()) == input_features.shape[0]:  # otherwise forward names the mismatch
                rows = input_features.split(clips.tolist())
                input_features = torch.cat([row for row in rows for _ in range(expand_size)])
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        if input_features is not None:
            model_kwargs["input_features"] = input_features
        return input_ids, model_kwargs


__all__ = ["SamGenerationMixin"]
