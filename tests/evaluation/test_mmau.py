"""MMAU: the figures of its test-mini, its rule on answers worked out by hand, what goes out to the server."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from shared import MMAU_MINI, needs

from sam_lab.evaluation.items import Item
from sam_lab.evaluation.mmau import (
    mmau_correct,
    mmau_prompt,
    read_mmau,
    score_mmau,
    shuffle_choices,
    strip_option_letter,
    write_mmau_submission,
)
from sam_lab.evaluation.tasks import read_task

published = needs(MMAU_MINI)

CHOICES = ["A dog barking", "a cat", "The rain", "A train and a bell"]


def question(number=0, answer="a cat", choices=CHOICES, task="sound", difficulty="easy"):
    groups = {"task": task, "sub-category": "Counting", "difficulty": difficulty, "category": "Reasoning"}
    references = (answer,) if answer else ()
    return Item(f"q{number}", None, mmau_prompt("What is it?", choices), references, tuple(choices), groups)


def records(number=3, **changes):
    return [
        {
            "id": f"q{index}",
            "audio_id": f"./test-mini-audios/q{index}.wav",
            "question": "What  is it?",
            "choices": CHOICES,
            "answer": "a cat",
            "task": "sound",
            "split": "test-mini",
            "category": ["Reasoning"],
            "sub-category": "Counting",
            "difficulty": "easy",
            **changes,
        }
        for index in range(number)
    ]


def write(folder, content, name="mmau-test-mini.json"):
    (folder / name).write_text(json.dumps(content))
    return folder / name


# -- Option letters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "b) dog",
        "b)dog",
        "(b) dog",
        "(B) dog",
        "b. dog",
        "B.  dog ",
        "b: dog",
        "b ) dog",
        "(b): dog",
        'B) "dog"',
        "b: 'dog'",
        'b."dog"',
        "**b)** dog",
        "**(B) dog**",
        "The answer is b) dog",
        "the correct answer is: (B) dog",
        "Answer: b) dog",
        "answer:b) dog",
        "Option B: dog",
        "The answer is option b) dog",
        "\n b) dog\n",
    ],
)
def test_a_letter_is_taken_off(text):
    assert strip_option_letter(text) == "dog"


@pytest.mark.parametrize(
    "text",
    [
        "a dog barking",
        "A dog barking",
        "a",
        "b)",
        "(c)",
        "The answer is a.",
        "The answer is dog",
        "The answer is a dog barking",
        "a.m. radio",
        "B:maj/1",
        "A:7/1",
        "E:(1,5)/1",
        "C# minor",
        "i) dog",
        "x: dog",
        "ab) dog",
        "dog (b) barking",
        "answers: dog",
        '"dog"',
        "",
    ],
)
def test_what_is_no_letter_stays(text):
    assert strip_option_letter(text) == text


def test_what_stands_behind_the_letter_stays():
    assert strip_option_letter("a) a dog barks. b) a cat") == "a dog barks. b) a cat"
    assert strip_option_letter("b) 'dog' and 'cat'") == "'dog' and 'cat'"
    assert strip_option_letter("b) B:maj/1") == "B:maj/1"
    assert strip_option_letter("A: 7 o'clock") == "7 o'clock"


def test_a_choice_that_looks_lettered_stays_whole():
    writers = ["Mark Twain", "F. Scott Fitzgerald", "E. Hemingway"]
    assert strip_option_letter("F. Scott Fitzgerald") == "Scott Fitzgerald"
    for text in ("F. Scott Fitzgerald", "f. scott fitzgerald wrote it.", "The answer is F. Scott Fitzgerald"):
        assert strip_option_letter(text, writers) == text
    assert strip_option_letter("b) F. Scott Fitzgerald", writers) == "F. Scott Fitzgerald"
    assert strip_option_letter("a. Mark Twain", writers) == "Mark Twain"


# -- The rule -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "answer", "choices", "right"),
    [
        ("a cat", "a cat", CHOICES, True),
        ("A CAT!", "a cat", CHOICES, True),
        ("cat, a", "a cat", CHOICES, True),  # sets of words
        ("I hear a cat", "a cat", CHOICES, True),  # words of no choice do not matter
        ("cat", "a cat", CHOICES, False),  # the article is a word like others
        ("a cat in the house", "a cat", CHOICES, False),  # "the" is a word of another choice
        ("a cats", "a cat", CHOICES, False),
        ("", "a cat", CHOICES, False),
        (" ?! ", "a cat", CHOICES, False),
        (" ".join(CHOICES), "a cat", CHOICES, False),  # all of them
        ("a dog", "a cat", CHOICES, False),
        ("Rain", "Rain", ["Rain", "A dog"], True),
        ("a) Rain", "Rain", ["Rain", "A dog"], False),  # the letter is the article of the wrong choice
        ("a", "Rain", ["Rain", "A dog"], False),
        ("a) A dog", "A dog", ["Rain", "A dog"], True),
        ("b) Rain", "Rain", ["Rain", "A dog"], True),
        ("two", "two one", ["one two", "two one"], False),
        ("one two", "two one", ["one two", "two one"], True),  # the same words in another order
        ("not bad", "bad", ["bad", "not bad"], False),
        ("ninety", "ninety", ["ninety", "ninety-one"], True),
        ("ninety-one", "ninety", ["ninety", "ninety-one"], False),
        ("door_bell", "door bell", ["door bell", "dog"], False),  # an underscore joins
        ("Ein Käuzchen", "käuzchen", ["käuzchen", "hund"], True),
        ("yes", "yes", ["yes"], True),
    ],
)
def test_the_official_rule(prediction, answer, choices, right):
    assert mmau_correct(prediction, answer, choices) is right


# -- Prompts ------------------------------------------------------------------------------------------------------


def test_prompts():
    choices = ["A dog", " two\ncats"]
    assert mmau_prompt("What barks? ", choices) == "what barks? a) a dog b) two cats"
    assert mmau_prompt("What barks?", choices, "plain") == "What barks?\n(A) A dog\n(B) two cats"
    assert mmau_prompt("What barks?", choices, "audio_flamingo") == (
        "What barks? Choose the correct option from the following options:\n(A) A dog\n(B) two cats"
    )
    with pytest.raises(ValueError, match="style: got 'chatty', expected one of reasonaqa, audio_flamingo, plain"):
        mmau_prompt("What?", choices, "chatty")
    for wrong in ([], "dog", ["x"] * 27):
        with pytest.raises(ValueError, match=r"choices: got .* expected a list of 1 to 26"):
            mmau_prompt("What?", wrong)


@pytest.mark.parametrize("style", ["reasonaqa", "plain", "audio_flamingo"])
def test_shuffled_choices(style):
    items = [
        Item(f"q{number}", "a.wav", mmau_prompt("Which a) is it?", CHOICES, style), ("a cat",), tuple(CHOICES))
        for number in range(200)
    ]
    shuffled = shuffle_choices(items, seed=1, style=style)
    for old, new in zip(items, shuffled):
        assert sorted(new.choices) == sorted(old.choices)
        assert new.prompt == mmau_prompt("Which a) is it?", new.choices, style)
        assert (new.id, new.audio, new.references) == (old.id, old.audio, old.references)
    places = Counter(item.choices.index("a cat") for item in shuffled)
    assert min(places[place] for place in range(4)) > 30  # 50 expected
    assert shuffle_choices(items[150:], seed=1, style=style) == shuffled[150:]  # whatever the others
    assert shuffle_choices(items, seed=2, style=style) != shuffled
    other = "plain" if style == "reasonaqa" else "reasonaqa"
    with pytest.raises(ValueError, match="items: the prompt of 'q0' does not end with"):
        shuffle_choices(items, style=other)


# -- Reading ------------------------------------------------------------------------------------------------------


def test_reading_the_published_layout(tmp_path):
    file = write(tmp_path, records())
    (tmp_path / "test-mini-audios").mkdir()
    (tmp_path / "test-mini-audios" / "q0.wav").touch()
    (tmp_path / "test-mini-audios" / "q2.flac").touch()
    items = read_mmau(tmp_path)
    assert [item.audio and Path(item.audio).name for item in items] == ["q0.wav", None, "q2.flac"]
    assert items[1] == Item(
        "q1",
        None,
        "what is it? a) a dog barking b) a cat c) the rain d) a train and a bell",
        ("a cat",),
        tuple(CHOICES),
        {"task": "sound", "sub-category": "Counting", "difficulty": "easy", "category": "Reasoning"},
    )
    assert read_mmau(file, "test-mini") == items == read_task("mmau_mini", tmp_path)
    assert read_mmau(file, style="plain")[0].prompt.startswith("What is it?\n(A) A dog")


def test_audio_elsewhere(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "q1.opus").touch()
    file = write(tmp_path, records())
    roots = [("test-mini-audios", str(elsewhere))]
    items = read_mmau(file, audio_roots=roots)
    assert [item.audio for item in items] == [None, str(elsewhere / "q1.opus"), None]
    assert read_task("mmau_mini", file, audio_roots=roots) == items


@pytest.mark.parametrize("answer", ["", None, ...])
def test_the_test_split_has_no_answers(tmp_path, answer):
    content = [{**record, "answer": answer, "split": "test"} for record in records()]
    content = [{key: value for key, value in record.items() if value is not ...} for record in content]
    write(tmp_path, content, "mmau-test.json")
    items = read_mmau(tmp_path, "test")
    assert [item.references for item in items] == [()] * 3
    result = score_mmau(items, ["a cat", None, ""])
    assert result["value"] is None and result["count"] == 0 and result["without_truth"] == 3
    assert result["by_task"] == {} and result["baselines"]["always_first"]["value"] is None
    assert result["official"]["value"] is None and result["is_correct"] == [None] * 3


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data: there is no file .*mmau-test-mini.json"):
        read_mmau(tmp_path)
    with pytest.raises(FileNotFoundError, match="data: there is no file"):
        read_mmau(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match="split: got 'base', expected 'mini' or 'test'"):
        read_mmau(tmp_path, "base")
    for changes, message in [
        ({"id": "same"}, "record 2 has the id 'same' of an earlier one"),
        ({"question": " "}, "record 1 has ' ' as question"),
        ({"audio_id": None}, "record 1 has None as audio_id"),
        ({"choices": "a cat"}, "record 1 has 'a cat' as choices"),
        ({"choices": []}, r"record 1 has \[\] as choices"),
        ({"split": "test"}, "record 1 is of the split 'test', but 'mini' was requested"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_mmau(write(tmp_path, records(**changes)))
    with pytest.raises(ValueError, match="of the split 'test-mini', but 'test' was requested"):
        read_mmau(write(tmp_path, records()), "test")


# -- Scores -------------------------------------------------------------------------------------------------------


def test_scores_by_hand(caplog):
    items = [
        question(0),
        question(1, difficulty="hard"),
        question(2, "The rain", task="music"),
        question(3, "The rain", task="music"),
        question(4, "A dog barking", task="music", difficulty="hard"),
        question(5, None),
    ]
    said = ["b) a cat", "The answer is a dog", None, " ", "(a) A dog barking", "a cat"]
    result = score_mmau(items, said)
    assert "2 of 5 questions have no answer and count as wrong" in caplog.text
    assert result["is_correct"] == [True, False, False, False, True, None]
    assert (result["value"], result["correct"], result["count"], result["unanswered"]) == (0.4, 2, 5, 2)
    assert result["by_task"] == {
        "music": {"value": pytest.approx(1 / 3), "correct": 1, "count": 3, "unanswered": 2},
        "sound": {"value": 0.5, "correct": 1, "count": 2, "unanswered": 0},
    }
    assert result["by_difficulty"]["hard"] == {"value": 0.5, "correct": 1, "count": 2, "unanswered": 0}
    assert result["by_sub_category"].keys() == {"Counting"} and result["by_category"].keys() == {"Reasoning"}
    assert result["without_truth"] == 1
    # The script skips the question without the key, and counts the empty text as wrong.
    assert result["official"] == {"value": 0.5, "correct": 2, "count": 4}
    assert result["as_written"]["correct"] == 2  # the letters b and a are words of no wrong choice here
    baselines = result["baselines"]
    assert baselines["always_first"]["value"] == 0.2
    assert baselines["always_first"]["by_task"] == {"music": pytest.approx(1 / 3), "sound": 0.0}
    assert baselines["random"]["value"] == pytest.approx(0.25)
    json.dumps(result)  # it goes into a file


def test_baselines_count_what_the_rule_lets_pass():
    choices = ["one two", "two one", "two", "three"]
    result = score_mmau([question(0, "two one", choices)], ["one two"])
    assert result["is_correct"] == [True]
    assert result["baselines"]["random"]["value"] == 0.25
    assert result["baselines"]["random"]["by_rule"] == {"value": 0.5, "by_task": {"sound": 0.5}}
    assert result["baselines"]["always_first"]["value"] == 0.0
    assert result["baselines"]["always_first"]["by_rule"]["value"] == 1.0


def test_the_shuffled_baseline_is_the_first_of_the_shuffled_choices():
    items = [question(number) for number in range(100)]
    share = sum(item.choices[0] == "a cat" for item in shuffle_choices(items, seed=3)) / 100
    result = score_mmau(items, ["a cat"] * 100, seed=3)
    assert result["baselines"]["shuffled_choices"]["value"] == share and 0.1 < share < 0.4


UNMET = [
    ("Snow", CHOICES),  # none of the choices: files of before v05.15.25
    ("a cat!", [*CHOICES[:1], "a cat", "a cat"]),  # the same words: this one can be met
    ("?", ["?", "!"]),  # no word, which anything would meet
    ("b) a cat", CHOICES),  # the letter is a word to the rule
]


def test_answers_that_no_choice_gives_are_counted_and_told_of_once(tmp_path, caplog):
    content = [{**record, "answer": a, "choices": c} for record, (a, c) in zip(records(4), UNMET)]
    items = read_mmau(write(tmp_path, content))
    assert caplog.text.count("3 of 4 questions have an answer that is none of their choices") == 1
    assert "'q0': 'Snow', of ['A dog barking'" in caplog.text and "v05.15.25" in caplog.text
    result = score_mmau(items, ["a dog barking", "a cat", "!", "a cat"])
    assert result["is_correct"] == [False, True, False, False]  # the official rule, and its count, as they are
    assert (result["value"], result["count"]) == (0.25, 4)
    assert (result["without_truth"], result["answer_not_among_choices"]) == (3, 3)
    assert result["several_true_choices"] == 1  # two are "a cat"


def test_answers_that_are_blank_or_missing_or_no_text(tmp_path, caplog):
    content = records(3)
    content[0]["answer"], content[1]["answer"] = "  ", None
    items = read_mmau(write(tmp_path, content))
    assert [item.references for item in items] == [(), (), ("a cat",)]
    assert "2 of 3 questions have no answer and are not scored" in caplog.text
    with pytest.raises(ValueError, match="record 1 has 3 as answer, expected the text of one of the choices"):
        read_mmau(write(tmp_path, records(answer=3)))


def test_letters_alone_are_wrong_and_counted():
    items = [question(number) for number in range(5)] + [question(5, "a", ["a", "the", "is", "of"])]
    result = score_mmau(items, ["b", "(b)", "B.", "The answer is b)", "b) a cat", "a"])
    assert result["is_correct"] == [False] * 4 + [True] * 2
    assert result["letters_alone"] == 4


def test_what_cannot_be_scored():
    with pytest.raises(ValueError, match="items, predictions: got 1 and 2"):
        score_mmau([question()], ["a", "b"])
    with pytest.raises(ValueError, match="items, predictions: got 0 and 0"):
        score_mmau([], [])


# -- The published data -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini():
    return read_mmau(MMAU_MINI)


@published
def test_the_published_questions(mini):
    assert len(mini) == 1000
    assert Counter(item.groups["task"] for item in mini) == {"sound": 333, "music": 334, "speech": 333}
    assert Counter(item.groups["difficulty"] for item in mini) == {"easy": 224, "medium": 540, "hard": 236}
    assert Counter(item.groups["category"] for item in mini) == {"Reasoning": 677, "Information Extraction": 323}
    assert len({item.groups["sub-category"] for item in mini}) == 27
    assert Counter(len(item.choices) for item in mini) == {4: 948, 2: 27, 5: 24, 8: 1}
    assert all(item.references[0] in item.choices for item in mini)
    places = Counter(item.choices.index(item.references[0]) for item in mini)
    assert [places[place] for place in range(4)] == [395, 271, 208, 126]
    assert mini[0].prompt == (
        "based on the given audio, identify the source of the speaking voice. a) man b) woman c) child d) robot"
    )


@published
def test_perfect_answers(mini):
    def passing(form):
        return sum(
            mmau_correct(
                form.format(letter="abcdefgh"[item.choices.index(item.references[0])], text=item.references[0]),
                item.references[0],
                item.choices,
            )
            for item in mini
        )

    assert passing("{text}") == 1000
    assert passing("{letter}) {text}") == 967  # as it is written, without stripping
    assert passing("a) {text}") == 925
    # With it all forms are right: chords such as B:maj/1 and F. Scott Fitzgerald keep what looks like a letter.
    for form in ("{text}", "{letter}) {text}", "({letter}) {text}", "{letter}. {text}", 'Answer: {letter}: "{text}"'):
        said = [
            form.format(letter="abcdefgh"[item.choices.index(item.references[0])], text=item.references[0])
            for item in mini
        ]
        result = score_mmau(mini, said)
        assert result["correct"] == result["official"]["correct"] == 1000, form
        assert result["as_written"]["correct"] == {"{text}": 1000, "{letter}) {text}": 967}.get(
            form, result["as_written"]["correct"]
        )


@pytest.mark.slow
@published
def test_what_guessing_gives(mini):
    baselines = score_mmau(mini, [item.choices[0] for item in mini])["baselines"]
    first = {task: round(100 * value, 2) for task, value in baselines["always_first"]["by_task"].items()}
    assert first == {"sound": 49.25, "music": 30.24, "speech": 39.04}
    # One in so many choices is 25.0, 25.0 and 26.7 %; but 27 questions hold a choice twice, some of them the true one.
    for task in first:
        asked = [item for item in mini if item.groups["task"] == task]
        chance = sum(item.choices.count(item.references[0]) / len(item.choices) for item in asked) / len(asked)
        assert baselines["random"]["by_task"][task] == pytest.approx(chance)
    assert 0.2 < baselines["shuffled_choices"]["value"] < 0.31
    # The rule's own chance, against many random answerers.
    generator = random.Random(0)
    answered = [score_mmau(mini, [generator.choice(item.choices) for item in mini]) for _ in range(20)]
    rates = [result["value"] for result in answered]
    assert sum(rates) / 20 == pytest.approx(baselines["random"]["by_rule"]["value"], abs=0.01)


@published
def test_an_answerer_of_the_first_choice_scores_its_baseline(mini):
    result = score_mmau(mini, [f"a) {item.choices[0].lower()}" for item in mini])
    assert result["value"] == result["baselines"]["always_first"]["by_rule"]["value"]
    for task, share in result["by_task"].items():
        assert share["value"] == result["baselines"]["always_first"]["by_rule"]["by_task"][task]


@published
def test_nine_questions_have_a_wrong_choice_that_passes(mini):
    loose = [
        item
        for item in mini
        if any(mmau_correct(c, item.references[0], item.choices) for c in item.choices if c != item.references[0])
    ]
    assert len(loose) == 9


# -- Submission ---------------------------------------------------------------------------------------------------


def test_submission(tmp_path):
    file = write(tmp_path, records())
    items = read_mmau(file)
    output = tmp_path / "out.json"
    write_mmau_submission(items[::-1], [None, "b) a cat", "The rain"], file, output)
    found = json.loads(output.read_text())
    assert [record.pop("model_output") for record in found] == ["The rain", "a cat", ""]
    assert found == records()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mmau-test-mini.json", "out.json"]


def test_submissions_of_other_questions_are_refused(tmp_path):
    file = write(tmp_path, records())
    items = read_mmau(file)
    output = tmp_path / "out.json"
    with pytest.raises(ValueError, match="items: got 2, 2 of them of the 3 questions"):
        write_mmau_submission(items[:2], ["x", "y"], file, output)
    with pytest.raises(ValueError, match="items: got 3, 2 of them of the 3 questions"):
        write_mmau_submission([*items[:2], items[1]], ["x", "y", "z"], file, output)
    with pytest.raises(ValueError, match="items, predictions: got 3 and 1"):
        write_mmau_submission(items, ["x"], file, output)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        write_mmau_submission(items, ["x"] * 3, tmp_path / "none.json", output)
    assert not output.exists()
