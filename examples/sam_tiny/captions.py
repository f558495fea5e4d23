"""The labels of short sound clips in English, for the texts of make_sam_tiny.py.

Every label has a headline ("Dog barking") and a clause ("a dog is barking"), both in captions.csv; all texts are made
from these two. The headlines of ESC-50's fifty classes name their class, and no other, by the rule of
`sam_lab.evaluation.wordforms.names_label`.
"""

import csv
from pathlib import Path

with open(Path(__file__).with_suffix(".csv"), newline="", encoding="utf-8") as handle:
    PHRASES = {row["label"]: (row["headline"], row["clause"]) for row in csv.DictReader(handle)}

# Prompts that ask for what DEFAULT_PROMPT asks, in a full sentence, and what answers look like.
SENTENCE_PROMPTS = {
    "Describe the audio in a full sentence.": "{sentence}",
    "What can be heard in this recording?": "The sound of {gerund}.",
    "Open-ended question: What is happening in the audio?": "It sounds like {clause}.",
    "Listen and tell me what you hear.": "I hear {gerund}.",
}


def lower_first(text: str) -> str:
    """`text` with its first letter in lower case."""
    return text[0].lower() + text[1:]


def upper_first(text: str) -> str:
    """`text` with its first letter in upper case."""
    return text[0].upper() + text[1:]


def headline(label: str) -> str:
    """The headline within a sentence: "dog barking"."""
    return lower_first(PHRASES[label][0])


def gerund(label: str) -> str:
    """The clause without its verb's `is` or `are`: "a dog barking"."""
    return PHRASES[label][1].replace(" is ", " ", 1).replace(" are ", " ", 1)


def caption(*labels: str) -> str:
    """The caption of a clip, in headlines: "Dog barking and rain falling."

    Args:
        labels (`str`): One label, or several where the clip is a mixture, the most audible first.
    """
    return " and ".join([PHRASES[labels[0]][0], *map(headline, labels[1:])]) + "."


def sentence(prompt: str, *labels: str) -> str:
    """The answer to one of [`SENTENCE_PROMPTS`]: "The sound of a dog barking and rain falling."

    Args:
        prompt (`str`): The prompt.
        labels (`str`): One label, or several where the clip is a mixture.
    """
    clauses = " and ".join(PHRASES[label][1] for label in labels)
    gerunds = " and ".join(map(gerund, labels))
    return SENTENCE_PROMPTS[prompt].format(sentence=upper_first(clauses) + ".", clause=clauses, gerund=gerunds)


def label_list(*labels: str) -> str:
    """The answer to the classification prompt, in the style of LTU's label lists: "Labels: dog barking; rain
    falling"."""
    return "Labels: " + "; ".join(map(headline, labels))
