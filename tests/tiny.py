"""Small things that the tests share."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# ---------------------------------------------------------------------------------------------------------------
# Tokenizer
# ---------------------------------------------------------------------------------------------------------------


def tiny_tokenizer(audio_token: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 259 entries, which reads any text, needs no file and no training.

    `<|endoftext|>` is 0, the bytes are 1 to 256, the ordinary token `&&` is 257 and the special token `<|audio|>`
    is 258. As in GPT-NeoX's, end of text is also the beginning and there is no padding token.

    Args:
        audio_token: Whether `<|audio|>` is there. Without it the processor adds it, again as 258.
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
