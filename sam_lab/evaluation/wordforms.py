"""The words by which a description names a class of ESC-50, and the rule by which it is correct."""

import re

from sam_lab.evaluation.labels import read_lines

# The 50 classes of ESC-50 and the words that name them: label -> forms -> slots -> words. A line of the file has the
# format `label: form; form`; a form is one or more slots joined by `+`, a slot is words joined by `|`. A text names a
# label if, for one of its forms, the text contains a word of every slot. Single forms are loose on purpose ("a motor"
# names `engine`), but a text that names two of the fifty classes is wrong.
ESC50_FORMS = {
    label: [[frozenset(slot.split("|")) for slot in form.split(" + ")] for form in forms.split("; ")]
    for label, forms in (line.split(": ") for line in read_lines("esc50_forms"))
}

MAX_WORDS = 25


def named_labels(text: str) -> set[str]:
    """The ESC-50 labels that a text names.

    The text is case-folded and split into words `[a-z]+`; a label is named if, for one of its forms in
    [`ESC50_FORMS`], the text contains a word of every slot, in any order.

    Args:
        text (`str`): A description, of any length.
    """
    words = set(re.findall("[a-z]+", text.casefold()))
    return {label for label, forms in ESC50_FORMS.items() if any(all(slot & words for slot in form) for form in forms)}


def names_label(text: str, label: str) -> bool:
    """Whether a description of a clip of ESC-50 is correct.

    A correct description has at most 25 words and names the true label (see [`named_labels`]) and no other of the
    fifty. A text that lists several classes is wrong, so guessing has no advantage.

    Args:
        text (`str`): The model's description.
        label (`str`): The clip's class as ESC-50 spells it, such as `"door_wood_knock"`.

    Raises:
        ValueError: `label` is not one of ESC-50's fifty classes.
    """
    if label not in ESC50_FORMS:
        raise ValueError(f"label: got {label!r}, expected one of ESC-50's 50 classes, such as 'dog' or 'rain'.")
    return len(re.findall("[a-z]+", text.casefold())) <= MAX_WORDS and named_labels(text) == {label}
