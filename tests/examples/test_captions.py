"""The texts about examples/sam-tiny's labels."""

import pytest
from tiny import script

from sam_lab.evaluation.wordforms import ESC50_FORMS, named_labels, names_label

LABELS = sorted(ESC50_FORMS)
captions = script("examples/sam_tiny/captions.py")


@pytest.mark.parametrize("label", LABELS)
def test_every_wording_names_its_label(label):
    wordings = [captions.caption(label), captions.label_list(label)]
    wordings += [captions.sentence(prompt, label) for prompt in captions.SENTENCE_PROMPTS]
    assert len(set(wordings)) == len(wordings)
    for text in wordings:
        assert names_label(text, label), text


def test_a_mixtures_wording_names_both():
    for first, second in zip(LABELS, LABELS[7:] + LABELS[:7]):
        wordings = [captions.caption(first, second), captions.label_list(first, second)]
        wordings += [captions.sentence(prompt, first, second) for prompt in captions.SENTENCE_PROMPTS]
        for text in wordings:
            assert named_labels(text) == {first, second}, text


def test_wordings_by_hand():
    assert captions.caption("dog", "rain") == "Dog barking and rain falling."
    prompts = list(captions.SENTENCE_PROMPTS)
    assert [captions.sentence(prompt, "dog", "rain") for prompt in prompts] == [
        "A dog is barking and rain is falling.",
        "The sound of a dog barking and rain falling.",
        "It sounds like a dog is barking and rain is falling.",
        "I hear a dog barking and rain falling.",
    ]
    assert captions.label_list("dog", "rain") == "Labels: dog barking; rain falling"
