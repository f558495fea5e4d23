"""`generate` of transformers for SAM, and the likelihood of given answers."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin

try:
    from .checks_sam import FiniteLogits, check_generation_inputs, check_scores, check_texts, special_tokens
except ImportError:
    if __package__:
        raise
    from checks_sam import FiniteLogits, check_generation_inputs, check_scores, check_texts, special_tokens
try:
    from .mamba_sam import given_cache
except ImportError:
    if __package__:
        raise
    from mamba_sam import given_cache


@dataclass
class CandidateScores:
    """Result of [`~SamGenerationMixin.score_candidates`] for `B` prompts with up to `C` candidates each.

    Where a prompt has fewer than `C` candidates, the length is 0 and sum and mean are minus infinity, so that
    `sums.argmax(dim=1)` is the likeliest candidate of each prompt.

    Args:
        token_log_likelihoods (`torch.Tensor` of shape `[B, C, T]`): Natural logarithm of the probability of each
            token of a candidate, given the prompt and the tokens before it; 0 past the candidate's end.
        lengths (`torch.Tensor` of shape `[B, C]`, int64): Tokens of each candidate, including the end of text if it
            was scored.
    """

    token_log_likelihoods: torch.Tensor
    lengths: torch.Tensor

    @property
    def sums(self) -> torch.Tensor:
        """Log-likelihood of each candidate as a whole, `[B, C]`."""
        return self.token_log_likelihoods.sum(dim=-1).masked_fill(self.lengths == 0, -torch.inf)

    @property
    def means(self) -> torch.Tensor:
        """Log-likelihood per token, `[B, C]`: sums favour short candidates, means do not."""
        return self.sums / self.lengths.clamp(min=1)


class SamGenerationMixin(GenerationMixin):
    """`generate` for [`SamForConditionalGeneration`]: greedy by default, on a [`SamCache`]; and `score_candidates`."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the first forward creates the cache

    @staticmethod
    def default_generation_config(config) -> GenerationConfig:
        """Greedy decoding of up to 400 new tokens, as in LTU, without the audio token."""
        return GenerationConfig(
            do_sample=False,
            max_new_tokens=400,
            pad_token_id=config.pad_token_id,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            suppress_tokens=None if config.audio_token_id is None else [config.audio_token_id],
        )

    @torch.no_grad()
    def generate(self, inputs=None, generation_config=None, *args, **kwargs):
        """`generate` of transformers, for prompts that are padded on either side or within.

        Each row goes on from its last real position: its real positions are moved to the right end first, so that
        the result is that of left-padded prompts. The returned sequences begin with the prompts as they were given,
        so that `sequences[:, input_ids.shape[1] :]` are the new tokens.

        Args:
            inputs (`torch.Tensor` of shape `[B, L]`, *optional*): `input_ids`.
            attention_mask (`torch.Tensor` of shape `[B, L]`, *optional*): 1 at real positions; with a cache, over what
                it has read and `input_ids`. Without a mask every position is real.
            The others as in transformers, and as in the model's `forward`.

        Raises:
            ValueError: Features that are not finite, ids outside the vocabulary, tensors that do not fit each other,
                labels, logits that are NaN; a row without a real position; or no mask, and rows of `input_ids` that
                look padded: they begin or end with the padding token several times, or not all alike. As the padding
                token is the end of text, nothing else tells them apart.
        """
        check_generation_inputs(self.config.text_config.vocab_size, inputs, kwargs)
        ids = kwargs.get("input_ids") if inputs is None else inputs
        embeds, mask = kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
        cache = given_cache(kwargs.get("cache"), kwargs.get("past_key_values"))
        seen = 0 if cache is None else cache.get_seq_length()
        if mask is None and embeds is None and seen == 0 and isinstance(ids, torch.Tensor) and ids.ndim == 2:
            mask = self._mask_of_padding(ids, generation_config, kwargs)
        if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
            return super().generate(inputs, generation_config, *args, **kwargs)
        new = mask.shape[1] - seen
        # What does not fit the mask is refused further on; ids beside embeddings may have no positions.
        fitting = [
            tensor
            for tensor in (ids, embeds)
            if isinstance(tensor, torch.Tensor) and len(tensor) == len(mask) and tensor.shape[1:2] >= (new,) > (0,)
        ]
        if not fitting:
            return super().generate(inputs, generation_config, *args, **kwargs)
        real = mask[:, seen:].bool()
        is_left_padded, has_prompts = torch.stack(
            [(real[:, 1:] >= real[:, :-1]).all(), real.any(dim=1).all()]
        ).tolist()
        if not has_prompts:
            raise ValueError(
                f"attention_mask: got no real position in the rows {(~real.any(dim=1)).nonzero().flatten().tolist()}, "
                "expected a prompt in each."
            )
        if is_left_padded:
            return super().generate(inputs, generation_config, *args, **kwargs)
        order = torch.argsort(real.to(torch.uint8), dim=1, stable=True)  # padding first

        def align(tensor):
            if not any(tensor is other for other in (mask, *fitting)):
                return tensor
            place = order.to(tensor.device)
            place = place if tensor.ndim == 2 else place[..., None].expand(-1, -1, tensor.shape[2])
            return torch.cat([tensor[:, :-new], tensor[:, -new:].gather(1, place)], dim=1)

        for name in kwargs.keys() & {"input_ids", "inputs_embeds"}:
            kwargs[name] = align(kwargs[name])
        kwargs["attention_mask"] = align(mask)
        found = super().generate(align(inputs), generation_config, *args, **kwargs)
        if ids is not None and ids.shape[1]:
            sequences = found if isinstance(found, torch.Tensor) else found.sequences
            sequences[:, : ids.shape[1]] = ids.repeat_interleave(len(sequences) // len(ids), dim=0)
        return found

    def _mask_of_padding(self, ids, generation_config, options):
        """The mask that transformers infers where padding is a token of its own; raises where it is the end of text
        and the rows look padded."""
        pad, end = (
            next(
                (value for value in (options.get(name), getattr(generation_config, name, None)) if value is not None),
                getattr(self.generation_config, name),
            )
            for name in ("pad_token_id", "eos_token_id")
        )
        if pad is None:
            return None
        is_pad = ids == pad
        if pad not in (end if isinstance(end, (list, tuple)) else [end]):
            return (~is_pad).long() if bool(is_pad.any()) else None
        runs = torch.stack([run.long().cumprod(dim=1).sum(dim=1) for run in (is_pad, is_pad.flip(1))])
        if ids.shape[1] > 1 and bool(((runs > 1) | (runs != runs[:, :1])).any()):
            raise ValueError(
                f"attention_mask: got None with input_ids whose rows begin with {runs[0].tolist()} and end with "
                f"{runs[1].tolist()} times the token {pad}, which is both padding and end of text; pass the "
                "processor's attention_mask, or torch.ones_like(input_ids) if these tokens are text."
            )
        return None

    def _get_logits_processor(self, *args, **kwargs):
        processors = super()._get_logits_processor(*args, **kwargs)
        processors.append(FiniteLogits())
        return processors

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
                raise ValueError("use_cache: got False with a cache, which every step would change; pass only one.")
            # The state holds the audio and the prompt. New positions follow those that were read: the mask covers
            # both, and so do the ids, unless the prompt was embedded.
            if attention_mask is not None:
                new = attention_mask.shape[1] - seen
            else:  # transformers drops a mask of ones and passes the number of new positions, if ids hold others too
                new = kwargs.get("next_sequence_length")
                new = input_ids.shape[1] if new is None else new
            if new < 1:
                raise ValueError(
                    f"attention_mask: got {new + seen} positions, expected more than the {seen} that the cache has "
                    "read; pass a mask over old and new positions, or input_ids that begin with the old ones."
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
            # Without a cache every step reads the embedded prompt and the generated tokens again.
            new = input_ids.shape[1] if attention_mask is None else attention_mask.shape[1] - inputs_embeds.shape[1]
            tail = self.get_input_embeddings()(input_ids[:, input_ids.shape[1] - new :])
            inputs["inputs_embeds"] = torch.cat([inputs_embeds, tail.to(inputs_embeds.dtype)], dim=1)
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size=1, is_encoder_decoder=False, input_ids=None, input_features=None, **model_kwargs
    ):
        # A row may have several clips or none: repeat the clips of a row together.
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

    @torch.no_grad()
    def score_candidates(
        self,
        processor,
        inputs: Mapping[str, torch.Tensor],
        candidates: Sequence[str] | Sequence[Sequence[str]],
        batch_size: int = 64,
        end_of_text: bool = True,
    ) -> CandidateScores:
        """Log-likelihoods of given answers.

        Clips and prompts are read once; each candidate continues from a copy of its prompt's state. The result is
        that of a forward over prompt and candidate, tokenised as for training: the candidate by itself, so that no
        token spans its beginning.

        Args:
            processor ([`SamAudioLanguageProcessor`]): The model's processor, whose tokenizer reads the candidates.
            inputs (`dict`): The processor's result for `B` prompts, without answers and with `return_tensors="pt"`,
                on the model's device: `input_ids` and `attention_mask` `[B, L]`, padded on either side, and
                `input_features` if there are clips.
            candidates (list of `str`, or list of lists of `str`): The answers to score: the same for every prompt, or
                one list for each prompt, of any length.
            batch_size (`int`, *optional*, defaults to 64): Candidates of all prompts that are read at once. It bounds
                the memory: each needs a state (20 MB for the 130M model, 170 MB for the 2.7B) and, for each of its
                tokens, a logit for every entry of the vocabulary. Results do not depend on it.
            end_of_text (`bool`, *optional*, defaults to `True`): Also score the end of text as the last token of
                every candidate: the probability of exactly this answer. Otherwise the probability that the answer
                starts with the candidate, so that "dog" is never less likely than "dog barking".

        Returns:
            [`CandidateScores`], on the device of `inputs`.

        Raises:
            ValueError: `inputs` lacks a key, holds answers or is refused by `generate` too; candidates are missing,
                blank or hold a special token, or are not one list for each prompt; the model is in training mode,
                where dropout would change the scores.

        Example:
            ```python
            >>> inputs = processor(text="What do you hear?", audio="dog.wav", return_tensors="pt")
            >>> scores = model.score_candidates(processor, inputs, ["A dog is barking.", "It rains."])
            >>> scores.sums.argmax(dim=1)
            tensor([0])
            ```
        """
        if self.training:
            raise ValueError("model: got training mode, where dropout changes the scores; call model.eval().")
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, expected a positive number.")
        ids, mask = _prompts(inputs)
        check_generation_inputs(self.config.text_config.vocab_size, None, inputs)
        rows = _candidates_by_row(candidates, len(ids))
        for row in rows:
            check_texts("candidates", row, special_tokens(processor.tokenizer))
        texts = list(dict.fromkeys(text for row in rows for text in row))
        ending = [processor.tokenizer.eos_token_id] if end_of_text else []
        tokens = {text: found + ending for text, found in zip(texts, processor.tokenize_texts(texts))}
        pairs = [(row, column) for row, texts in enumerate(rows) for column in range(len(texts))]
        # Longest first: batches have little padding, and the first one shows whether memory suffices.
        pairs.sort(key=lambda pair: -len(tokens[rows[pair[0]][pair[1]]]))

        # The last token of a prompt, which predicts the first of a candidate, is read with the candidates.
        places = torch.arange(ids.shape[1], device=ids.device)
        last = (mask * places).amax(dim=1, keepdim=True)
        prompt = self(
            input_ids=ids,
            input_features=inputs.get("input_features"),
            attention_mask=mask.scatter(1, last, False),
            use_cache=True,
            logits_to_keep=1,
        )
        begin = ids.gather(1, last)
        shape = (len(rows), max(map(len, rows)), max(map(len, tokens.values())))
        scores = torch.zeros(shape, dtype=prompt.logits.dtype, device=ids.device)
        lengths = torch.zeros(shape[:2], dtype=torch.long, device=ids.device)
        for first in range(0, len(pairs), batch_size):
            batch = pairs[first : first + batch_size]
            read = [tokens[rows[row][column]] for row, column in batch]
            row, column = torch.tensor(batch, device=ids.device).unbind(dim=1)
            length = torch.tensor([len(each) for each in read], device=ids.device)
            width = len(read[0])
            targets = torch.tensor([each + [0] * (width - len(each)) for each in read], device=ids.device)
            real = torch.arange(width, device=ids.device) < length[:, None]
            cache = copy.copy(prompt.cache)  # a shallow copy: selecting rows replaces its tensors
            cache.batch_select_indices(row)
            shifted = torch.cat([begin[row], targets[:, :-1]], dim=1)
            logits = self(input_ids=shifted, attention_mask=real, cache=cache, use_cache=True).logits
            found = logits.gather(-1, targets[..., None]).squeeze(-1) - logits.logsumexp(dim=-1)
            scores[row, column, :width] = found.masked_fill(~real, 0.0)
            lengths[row, column] = length
        check_scores("log-likelihoods", scores)
        return CandidateScores(scores, lengths)


def _prompts(inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """`input_ids` and the boolean mask of the processor's result for prompts."""
    for name in ("input_ids", "attention_mask"):
        if not isinstance(inputs.get(name), torch.Tensor) or inputs[name].ndim != 2:
            raise ValueError(
                f"inputs: got {sorted(inputs)} with {type(inputs.get(name)).__name__} as {name}, expected a tensor of "
                'shape [B, L]; pass the result of the processor with return_tensors="pt".'
            )
    if "labels" in inputs:
        raise ValueError("inputs: got labels, expected prompts alone; call the processor without `answer`.")
    return inputs["input_ids"], inputs["attention_mask"].bool()


def _candidates_by_row(candidates: Any, num_rows: int) -> list[list[str]]:
    """A checked list of candidates for each prompt."""
    expected = f"expected a list of texts, or for {num_rows} prompts {num_rows} lists of texts"
    if isinstance(candidates, str) or not len(candidates):
        raise ValueError(f"candidates: got {candidates!r}, {expected}.")
    if all(isinstance(item, str) for item in candidates):
        rows = [list(candidates)] * num_rows
    elif not all(isinstance(item, (list, tuple)) for item in candidates) or len(candidates) != num_rows:
        kinds = ", ".join(sorted({type(item).__name__ for item in candidates}))
        raise ValueError(f"candidates: got {len(candidates)} items ({kinds}), {expected}.")
    else:
        rows = [list(row) for row in candidates]
    for number, row in enumerate(rows):
        if not row:
            raise ValueError(f"candidates: got none for prompt {number}, {expected}.")
        for text in row:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"candidates: got {text!r}, expected text that is not blank.")
    return rows
