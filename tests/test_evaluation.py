import json
import os
from pathlib import Path

import pytest

from evaluation_sam import (
    ESC50_FORMS,
    answers_question,
    evaluate_questions,
    named_labels,
    names_label,
    strip_option_letter,
    wilson_interval,
)

SHARED = Path(os.environ.get("SAM_SHARED_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
FORMS = SHARED / "text" / "esc50" / "accepted_forms.json"


def test_there_are_the_fifty_labels():
    assert len(ESC50_FORMS) == 50
    assert all(forms and all(form and all(slot for slot in form) for form in forms) for forms in ESC50_FORMS.values())
    assert all(
        word.isalpha() and word.islower() for forms in ESC50_FORMS.values() for f in forms for s in f for word in s
    )


@pytest.mark.skipif(not FORMS.exists(), reason=f"the shared data is not there: {FORMS}")
def test_forms_are_the_agreed_ones():
    agreed = json.loads(FORMS.read_text())["forms"]
    assert {label: [[set(slot) for slot in form] for form in forms] for label, forms in ESC50_FORMS.items()} == {
        label: [[set(slot) for slot in form] for form in forms] for label, forms in agreed.items()
    }


def test_every_form_names_its_label_and_no_other():
    shared = 0
    for label, forms in ESC50_FORMS.items():
        for form in forms:
            for slot in form:
                for word in slot:
                    text = " ".join([word] + [min(other) for other in form if other is not slot])
                    assert label in named_labels(text), text
                    shared += named_labels(text) != {label}
    assert shared == 0


@pytest.mark.parametrize(
    ("text", "label", "right"),
    [
        ("A dog is barking.", "dog", True),
        ("A dog is barking.", "cat", False),
        ("Dog barking and a cat meowing.", "dog", False),  # two of the fifty
        ("DOG!", "dog", True),
        ("Hotdog stand", "dog", False),  # words, not substrings
        ("dog_barking", "dog", True),  # an underscore ends a word
        ("", "dog", False),
        ("A hammer hits a nail.", "dog", False),
        ("A church bell rings.", "church_bells", True),
        ("A bell rings.", "church_bells", True),
        ("An alarm bell rings.", "church_bells", False),  # names clock_alarm as well
        ("An alarm bell rings.", "clock_alarm", False),
        ("An alarm clock rings.", "clock_alarm", True),
        ("A clock.", "clock_tick", False),
        ("A clock is ticking.", "clock_tick", True),
        ("A car honks its horn.", "car_horn", True),
        ("A train horn sounds.", "car_horn", False),
        ("A train horn sounds.", "train", False),
        ("Insects buzzing.", "insects", True),
        ("Bees buzzing in a hive.", "insects", True),
        ("Crickets and other insects buzzing.", "crickets", False),
        ("A mouse is clicked.", "mouse_click", False),
        ("A mouse clicks.", "mouse_click", True),
        ("A keyboard clicks.", "mouse_click", False),
        ("A can of soda is opened.", "can_opening", True),
        ("A can falls.", "can_opening", False),
        ("A door opens.", "can_opening", False),
        ("A glass is filled.", "glass_breaking", False),
        ("Glass shatters.", "glass_breaking", True),
        ("A washing machine spins.", "washing_machine", True),
        ("A machine is washing.", "washing_machine", True),  # slots in any order
        ("A machine hums.", "washing_machine", False),
        ("A vacuum cleaner.", "vacuum_cleaner", True),
        ("A baby laughs.", "crying_baby", False),
        ("A baby cries.", "crying_baby", True),
        ("A woman cries.", "crying_baby", False),
        ("A rooster crows.", "rooster", True),  # "crows" is the verb too, so it does not name the bird
        ("A rooster crows.", "crow", False),
        ("A crow caws.", "crow", True),
        ("Crows.", "crow", False),
        ("A hand saw cuts wood.", "hand_saw", True),
        ("A chainsaw cuts wood.", "hand_saw", False),
        ("A chain saw cuts wood.", "hand_saw", True),
        ("Sparrows tweet.", "chirping_birds", True),
        ("A smoke alarm chirps.", "chirping_birds", False),
        ("Birds chirp as rain falls.", "chirping_birds", False),
        ("Rain drops on a roof.", "rain", False),  # "drops" names water_drops
        ("Thunder and rain.", "thunderstorm", False),
        ("Water is pouring.", "pouring_water", True),
        ("Brushing hair.", "brushing_teeth", False),
        ("Brushing teeth.", "brushing_teeth", True),
    ],
)
def test_names_label(text, label, right):
    assert names_label(text, label) is right


def test_at_most_25_words():
    assert names_label("dog " + "the " * 24, "dog")
    assert not names_label("dog " + "the " * 25, "dog")
    assert names_label("dog " + "12 " * 40, "dog")  # a number is no word


def test_unknown_label():
    with pytest.raises(ValueError, match="label: got 'unicorn', expected one of ESC-50's 50"):
        names_label("a unicorn", "unicorn")


def test_wilson_interval():
    low, high = wilson_interval(50, 100)  # the textbook's example
    assert low == pytest.approx(0.4038, abs=1e-4) and high == pytest.approx(0.5962, abs=1e-4)
    assert wilson_interval(0, 10)[0] == 0 and wilson_interval(10, 10)[1] == 1
    with pytest.raises(ValueError, match="correct, count"):
        wilson_interval(3, 0)


# ------------------------------------------------------------------------------------------------------ questions


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("b) dog barking", "dog barking"),
        ("(B) dog barking", "dog barking"),
        ("B. dog barking", "dog barking"),
        ("c: rain", "rain"),
        ("a dog barking", "a dog barking"),  # an article is no letter
        ("dog barking", "dog barking"),
        ("", ""),
    ],
)
def test_an_options_letter_is_taken_off(text, bare):
    assert strip_option_letter(text) == bare


@pytest.mark.parametrize(
    ("prediction", "answer", "kind", "right"),
    [
        ("Yes.", "Yes.", "binary", True),
        ("yes, a dog is barking", "Yes.", "binary", True),
        ("No.", "Yes.", "binary", False),
        ("There is, yes", "Yes.", "binary", False),  # the first word decides
        ("", "No.", "binary", False),
        ("not sure", "No.", "binary", False),
        ("b) dog barking", "b) dog barking", "multiple_choice", True),
        ("a) dog barking", "b) dog barking", "multiple_choice", True),  # the text counts
        ("b) cow mooing", "b) dog barking", "multiple_choice", False),
        ("dog barking", "b) dog barking", "multiple_choice", True),
        ("(b)", "b) dog barking", "multiple_choice", True),
        ("c", "b) dog barking", "multiple_choice", False),
        ("Two.", "two", "number", True),
        ("Two sounds.", "Two.", "number", False),
    ],
)
def test_answers_are_right_by_their_kind(prediction, answer, kind, right):
    assert answers_question(prediction, answer, kind) is right


def test_questions_are_scored_by_kind(monkeypatch):
    rows = [
        {"audio": "x/dog.wav", "prompt": "Is it a dog?", "answer": "Yes.", "kind": "binary"},
        {"audio": "x/dog.wav", "prompt": "Is it a cow?", "answer": "No.", "kind": "binary"},
        {"audio": "x/cow.wav", "prompt": "What is it? a) a b) b", "answer": "a) a", "kind": "multiple_choice"},
    ]
    asked = []

    def answers(model, processor, clips, prompts, batch_size):
        asked.extend(zip(clips, prompts))
        return ["Yes.", "Yes.", "a) a"]

    monkeypatch.setattr("evaluation_sam.generate_answers", answers)
    result = evaluate_questions(None, None, rows, "somewhere")
    assert asked[0] == (str(Path("somewhere", "x/dog.wav")), "Is it a dog?")
    assert result["value"] == pytest.approx(2 / 3) and result["count"] == 3
    assert result["by_kind"]["binary"]["value"] == 0.5 and result["by_kind"]["binary"]["count"] == 2
    assert result["by_kind"]["multiple_choice"]["interval"] == list(wilson_interval(1, 1))
    assert [item["correct"] for item in result["predictions"]] == [True, False, True]
    with pytest.raises(ValueError, match="rows: got 0 rows with no 'audio'"):
        evaluate_questions(None, None, [])
