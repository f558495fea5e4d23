"""The rule for the texts of records and tables: no special token, but the mark of the clip in a prompt; and no prompt
that may be a question or rendered already."""

from collections.abc import Collection

from chat_sam import AUDIO_TOKEN, HEADINGS, PROMPT_TEMPLATE, is_rendered

# Of every processor, and of GPT-NeoX's tokenizer, which the paper's language models read with; for readers that have
# no tokenizer yet.
SPECIAL_TOKENS = (AUDIO_TOKEN, "<|endoftext|>", "<|padding|>")


def text_problem(
    prompt: str, answer: str, has_audio: bool, special_tokens: Collection[str] = SPECIAL_TOKENS
) -> str | None:
    """What is wrong with a record's texts, to follow "has", or `None`.

    A special token in a text is not read as text: `<|endoftext|>` ends what is learned, `<|audio|>` stands for a clip.

    Args:
        prompt, answer (`str`): The texts. A prompt may hold `<|audio|>` once, where its clip is.
        has_audio (`bool`): Whether there is a clip.
        special_tokens (list of `str`, *optional*): From [`special_tokens`] of the tokenizer; by default those of
            GPT-NeoX and `<|audio|>`.
    """
    try:
        is_rendered(prompt)
    except ValueError:
        return (
            f"both {' and '.join(HEADINGS)} in the prompt, but not as a rendered prompt has them, expected the "
            f"question alone, or {PROMPT_TEMPLATE!r} with each of its newlines; correct or remove it."
        )
    found = [token for token in special_tokens if token in prompt or token in answer]
    if not found:
        return None
    for name, text in (("prompt", prompt), ("answer", answer)):
        for token in found:
            if token in text and (name == "answer" or token != AUDIO_TOKEN):
                return f"the special token {token} in the {name}, expected text only; remove it."
    if prompt.count(AUDIO_TOKEN) > has_audio:
        return (
            f"{prompt.count(AUDIO_TOKEN)} {AUDIO_TOKEN} in the prompt and {int(has_audio)} clip(s), expected at most "
            "one for each; remove them, and the clip comes first."
        )
    return None
