import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
from shared import DATA, SOUNDS, needs
from sklearn.metrics import average_precision_score
from tiny import tiny_model, tiny_processor, tone

from modeling_sam import SamForConditionalGeneration
from processing_sam import SamFeatureExtractor, SamProcessor
from sam_lab.evaluation import protocols as protocols_module
from sam_lab.evaluation.items import Item
from sam_lab.evaluation.mmau import strip_option_letter
from sam_lab.evaluation.protocols import candidate_texts, evaluate
from sam_lab.evaluation.questions import QUESTIONS, answers_question, question_items
from sam_lab.evaluation.scoring import label_similarities, wilson_interval
from sam_lab.evaluation.tasks import TASKS, Task, read_task
from sam_lab.evaluation.wordforms import ESC50_FORMS, named_labels, names_label

ROOT = Path(__file__).parents[2]
SAM_TINY = ROOT / "examples" / "sam-tiny"
FORMS = DATA / "text" / "esc50" / "accepted_forms.json"


def test_there_are_the_fifty_labels():
    assert len(ESC50_FORMS) == 50
    assert all(forms and all(form and all(slot for slot in form) for form in forms) for forms in ESC50_FORMS.values())
    assert all(
        word.isalpha() and word.islower() for forms in ESC50_FORMS.values() for f in forms for s in f for word in s
    )


@needs(FORMS)
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


# -- Questions ----------------------------------------------------------------------------------------------------


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
        ("d", "dog barking", "multiple_choice", False),  # no option's letter
        ("b", "b", "multiple_choice", True),  # a truth that is a letter alone
        ("(B)", "b.", "multiple_choice", True),
        ("b) dog barking", "(b)", "multiple_choice", True),
        ("a) dog barking", "b", "multiple_choice", False),
        ("bark", "b", "multiple_choice", False),
        ("Two.", "two", "number", True),
        ("Two sounds.", "Two.", "number", False),
    ],
)
def test_answers_are_right_by_their_kind(prediction, answer, kind, right):
    assert answers_question(prediction, answer, kind) is right


def fake_predict(*texts, sums=None):
    """In the place of `predict`: given answers, `None` for a clip that cannot be read."""

    def predict(model, processor, items, work, settings, candidates, end_of_text, batch_size, max_new_tokens, state):
        records = [{"id": item.id, "text": text, "failed": None} for item, text in zip(items, texts, strict=True)]
        for record, row in zip(records, sums or []):
            record |= {"sums": row, "tokens": [2 if value > -9 else 9 for value in row]}
        records[0]["long"] = True
        for record in records:
            if record["text"] is None:
                record.update(failed="it is noise")
                record.pop("sums", None)
        return records, {"seconds": 1.0, "clips_per_second": len(items), "resumed": 0}

    return predict


class Silent:
    """A model that is only looked at."""

    dtype = torch.float32

    def eval(self):
        return self


@pytest.fixture
def clip(tmp_path):
    """A file of sound."""
    soundfile.write(tmp_path / "tone.wav", tone(), 16000)
    return str(tmp_path / "tone.wav")


def test_questions_are_scored_by_kind(monkeypatch, tmp_path, clip):
    rows = [
        {"audio": "tone.wav", "prompt": "Is it a dog?", "answer": "Yes.", "kind": "binary"},
        {"audio": "tone.wav", "prompt": "Is it a cow?", "answer": "No.", "kind": "binary"},
        {"audio": "tone.wav", "prompt": "What is it? a) a b) b", "answer": "a) a", "kind": "multiple_choice"},
    ]
    asked = question_items(rows, tmp_path)
    assert [item.audio for item in asked] == [clip] * 3
    result = run(monkeypatch, tmp_path, QUESTIONS, asked, fake_predict("Yes.", "Yes.", "a) a"))
    assert (result["benchmark"], result["protocol"]) == ("questions", "answers_question")
    assert result["value"] == pytest.approx(2 / 3) and result["count"] == 3
    assert result["by_kind"]["binary"]["value"] == 0.5 and result["by_kind"]["binary"]["count"] == 2
    assert result["by_kind"]["multiple_choice"]["interval"] == list(wilson_interval(1, 1))
    assert [item["correct"] for item in result["predictions"]] == [True, False, True]
    assert [item["kind"] for item in result["predictions"]] == ["binary", "binary", "multiple_choice"]
    with pytest.raises(ValueError, match="rows: got 0, number 0 with no 'audio'"):
        question_items([])
    with pytest.raises(ValueError, match="rows: got 3, number 1 with no 'answer'"):
        question_items([rows[0], {**rows[1], "answer": ""}, rows[2]])
    with pytest.raises(ValueError, match="rows: number 1 is binary and has the answer 'nothing', expected yes or no"):
        question_items([rows[0], {**rows[1], "answer": "nothing"}])


def test_questions_that_nothing_can_answer(monkeypatch, tmp_path, clip, caplog):
    def row(answer, kind="multiple_choice", prompt="What is it? a) a dog b) a cat"):
        return {"audio": "tone.wav", "prompt": prompt, "answer": answer, "kind": kind}

    asked = question_items(
        [row("b) A cat."), row("a bird"), row("b"), row("d", "Multiple choice"), row("Two", "number")], tmp_path
    )
    assert caplog.text.count("2 of 5 questions have an answer that is not among the options") == 1
    assert "'a bird' to 'What is it? a) a dog b) a cat'" in caplog.text
    result = run(monkeypatch, tmp_path, QUESTIONS, asked, fake_predict("b", "a) a dog", "b) a cat", "b) a cat", "two"))
    assert result["cannot_be_right"] == ["1: tone.wav", "3: tone.wav"]
    assert (result["value"], result["count"]) == (0.6, 5)
    for answer, kind in (("...", "number"), ("?", "multiple_choice"), ("_", "text")):
        with pytest.raises(ValueError, match=r"number 0 has the answer .*, expected a word or a number"):
            question_items([row(answer, kind)], tmp_path)


# -- Protocols ----------------------------------------------------------------------------------------------------


def toy_task(metric="accuracy", name="toy", labels=("dog_bark", "rain", "sea_waves")):
    texts = tuple(label.replace("_", " ") for label in labels)
    return Task(name, "Toy", "What is it?", labels, texts, metric, 4, False, "", None)


def items(clip, *references, choices=()):
    return [Item(f"{n}.wav", clip, "What is it?", tuple(r), choices) for n, r in enumerate(references)]


class Words:
    """An encoder for which only the same words are near."""

    name = "words"
    words = ("dog", "bark", "rain", "sea", "waves")

    def __init__(self):
        self.cut_texts = {"of another task"}

    def embed(self, texts, batch_size=64):
        self.cut_texts |= {text for text in texts if len(text.split()) > 5}
        found = torch.tensor([[1.0, *(float(word in text.split()) for word in self.words)] for text in texts])
        return torch.nn.functional.normalize(found, dim=1)


READER = SimpleNamespace(feature_extractor=SamFeatureExtractor())  # as much of a processor as plans need


def run(monkeypatch, tmp_path, chosen, rows, predict, **options):
    monkeypatch.setattr(protocols_module, "predict", predict)
    return evaluate(Silent(), READER, rows, chosen, tmp_path / "work", **options)


def test_one_generation_serves_all_protocols(monkeypatch, tmp_path, clip):
    rows = [*items(clip, ["dog_bark"], ["rain"], ["rain"], ["sea_waves"]), Item("4.wav", None, "?", ("rain",))]
    sums = [[-1.0, -2, -3], [-8, -9, -10], [-3, -1, -2], [-9, -9, -9]]
    predict = fake_predict("Audio caption: A dog bark endlessly", "sea waves", "rain", None, sums=sums)
    options = {"text_encoder": Words(), "min_coverage": 0.8}
    result = run(monkeypatch, tmp_path, toy_task(), rows, predict, **options)
    assert (result["protocol"], result["metric"], result["text_encoder"]) == ("text_encoder", "accuracy", "words")
    assert list(result["protocols"]) == ["text_encoder", "likelihood"]
    # The clip that cannot be read counts as wrong, the one that is not there does not count.
    assert result["value"] == 2 / 4 and result["protocols"]["likelihood"]["value"] == 2 / 4
    assert (result["count"], result["expected"], result["published"]) == (4, 5, 4)
    assert result["protocols"]["text_encoder"]["labels_without_clips"] == 0 and result["long"] == 1
    assert result["heard_in_training"] is False
    assert result["texts_cut"] == 1  # sound of a dog bark endlessly
    assert result["missing"] == ["4.wav"] and result["failed"] == [{"id": "3.wav", "reason": "it is noise"}]
    labels = [[each["label"] for each in row["by_protocol"].values()] for row in result["predictions"]]
    assert labels == [["dog_bark", "dog_bark"], ["sea_waves", "dog_bark"], ["rain", "rain"], [None, None]]
    assert [row["correct"] for row in result["predictions"]] == [True, False, True, False]
    assert result["protocols"]["likelihood"]["by_mean"]["value"] == 3 / 4  # -9 of 9 tokens beats -8 of 2
    assert result["interval"][0] < 0.5 < result["interval"][1]
    json.dumps(result)


def test_a_run_is_told_from_any_other(monkeypatch, tmp_path, clip):
    """What the answers and likelihoods depend on is in the settings that guard the work folder."""

    (row,) = items(clip, ["rain"])

    def settings(*rows, name="toy", dtype=torch.float32, **options):
        rows, seen, model = rows or [row], {}, Silent()
        model.dtype = dtype

        def predict(*args):
            seen.update(args[4])
            return fake_predict(*["rain"] * len(rows), sums=[[-1.0, -2.0, -3.0]] * len(rows))(*args)

        monkeypatch.setattr(protocols_module, "predict", predict)
        options = {"protocols": ["likelihood"], "checkpoint_hash": "a", **options}
        evaluate(model, READER, rows, toy_task(name=name), tmp_path, **options)
        return seen

    others = [
        settings(name="other"),
        settings(dtype=torch.bfloat16),
        settings(checkpoint_hash="b"),
        settings(max_new_tokens=5),
        settings(answer_form="{label}"),
        settings(replace(row, prompt="Why?")),
        settings(row, replace(row, id="another")),
    ]
    assert all(other != settings() for other in others) and settings() == settings()


def test_several_labels_and_map(monkeypatch, tmp_path, clip):
    rows = items(clip, ["dog_bark", "rain"], ["rain"], ["sea_waves"], ["rain"])
    predict = fake_predict("dog bark", "rain", "rain", "nothing")
    options = {"text_encoder": Words(), "protocols": ["text_encoder"]}
    result = run(monkeypatch, tmp_path, toy_task("map"), rows, predict, **options)
    scores = label_similarities(["dog bark", "rain", "rain", "nothing"], toy_task().label_texts, Words())
    targets = [[1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert result["value"] == pytest.approx(average_precision_score(targets, scores, average="macro"))
    assert result["labels_without_clips"] == 0 and result["predictions"][0]["reference"] == ["dog_bark", "rain"]
    few = run(monkeypatch, tmp_path, toy_task("map"), rows[:2], fake_predict("dog bark", "rain"), **options)
    assert few["labels_without_clips"] == 1
    heard = replace(toy_task("map"), heard_in_training=True)
    assert run(monkeypatch, tmp_path, heard, rows, predict, **options)["heard_in_training"] is True
    result = run(monkeypatch, tmp_path, toy_task("micro_f1"), rows, predict, **options)
    assert result["value"] == pytest.approx(2 * 3 / (4 + 5)) and result["scores"]["accuracy"] == 0.75


def test_esc50_by_names_and_by_encoder(monkeypatch, tmp_path, clip):
    predict = fake_predict("A dog barks.", "A dog and rain.")
    rows = items(clip, ["dog"], ["rain"])
    esc50 = TASKS["esc50"]
    result = run(monkeypatch, tmp_path, esc50, rows, predict)
    assert (result["protocol"], result["value"]) == ("names_label", 0.5)
    assert result["interval"] == list(wilson_interval(1, 2)) and list(result["protocols"]) == ["names_label"]
    names = ["names_label", "text_encoder"]
    result = run(monkeypatch, tmp_path, esc50, rows, predict, text_encoder=Words(), protocols=names)
    assert result["protocol"] == "names_label" and list(result["protocols"]) == names


def test_labels_are_written_in_the_answers_form():
    item = Item("a.wav", None, "?", ("rain",))
    assert candidate_texts(item, toy_task()) == ["Dog bark", "Rain", "Sea waves"]
    assert candidate_texts(item, toy_task(), "{It} is {label}.")[0] == "{It} is dog bark."
    with pytest.raises(ValueError, match=r"answer_form: got 'dog', expected a text with \{label\} or"):
        candidate_texts(item, toy_task(), "dog")  # all labels would be equally likely


def test_choices(monkeypatch, tmp_path, clip):
    rows = items(clip, ["A dog"], ["rain"], ["rain"], choices=("A dog", "rain"))
    rows = [replace(item, prompt="what? a) a dog b) rain", groups={"task": "sound"}) for item in rows]
    assert candidate_texts(rows[0], toy_task("mmau", labels=())) == ["a) a dog", "b) rain"]
    other = replace(rows[0], prompt="What?\n(A) A dog\n(B) rain")
    assert candidate_texts(other, toy_task("mmau", labels=())) == ["(A) A dog", "(B) rain"]
    assert candidate_texts(replace(other, prompt="What?"), toy_task("mmau", labels=())) == ["A dog", "rain"]
    predict = fake_predict("a) a dog", "", None, sums=[[-2.0, -1.0], [-2.0, -1.0], [-1.0, -2.0]])
    result = run(monkeypatch, tmp_path, toy_task("mmau", labels=()), rows, predict)
    assert (result["protocol"], result["value"], result["unanswered"]) == ("mmau_correct", 1 / 3, 1)
    assert result["protocols"]["likelihood"]["value"] == 1 / 3
    assert [row["by_protocol"]["likelihood"]["label"] for row in result["predictions"]] == ["rain", "rain", None]
    hidden = [replace(item, references=()) for item in rows]  # MMAU's test: the answers are not published
    result = run(monkeypatch, tmp_path, toy_task("mmau", labels=()), hidden, predict)
    assert result["value"] is None and result["interval"] is None and result["predictions"][0]["correct"] is None


def test_captions(monkeypatch, tmp_path, clip):
    asked = []

    def scores(captions, references, spice_jars, require_spice):
        asked.extend(zip(captions, references))
        spice = {"SPICE": 0.3, "SPICE_per_clip": [0.1, 0.5]} if spice_jars else {}
        return {"CIDEr": 0.5, "CIDEr_per_clip": [0.0, 1.0], **spice, "count": 2, "missing": None}

    monkeypatch.setattr(protocols_module, "caption_scores", scores)
    monkeypatch.setattr(protocols_module, "caption_preflight", lambda *args: None)
    rows = items(clip, ["rain", "waves"], ["dog"])
    predict = fake_predict("Audio caption: rain", "dog")
    options = {"text_encoder": Words(), "spice_jars": "jars"}
    result = run(monkeypatch, tmp_path, toy_task("caption", labels=()), rows, predict, **options)
    assert asked == [("rain", ["rain", "waves"]), ("dog", ["dog"])]
    assert (result["protocol"], result["metric"], result["value"]) == ("captions", "SPICE", 0.3)
    assert result["interval"] == pytest.approx([0.1, 0.5]) and result["scores"]["CIDEr"] == 0.5
    assert result["scores"]["similarity_mean"] == pytest.approx((1 + 0.5) / 2 / 2 + 1 / 2)
    assert result["predictions"][1]["by_protocol"]["captions"]["SPICE"] == 0.5
    result = run(monkeypatch, tmp_path, toy_task("caption", labels=()), rows, predict)
    assert (result["metric"], result["value"]) == ("CIDEr", 0.5)


def test_what_is_asked_for_wrongly(monkeypatch, tmp_path, clip):
    rows = items(clip, ["rain"])
    with pytest.raises(ValueError, match=r"text_encoder: got None for toy.*clap-2023.*--protocol likelihood"):
        run(monkeypatch, tmp_path, toy_task(), rows, None)
    with pytest.raises(
        ValueError, match="protocols: got 'captions' for toy, expected some of text_encoder, likelihood"
    ):
        run(monkeypatch, tmp_path, toy_task(), rows, None, protocols=["captions"])
    with pytest.raises(ValueError, match="protocols: got 'names_label' for toy"):
        run(monkeypatch, tmp_path, toy_task(), rows, None, protocols=["names_label"])
    few = [*rows, Item("lost.wav", None, "?", ("rain",))]
    message = r"data: toy: 1 of 2 clips are present, 4 were published; expected .*95%\. Missing: lost\.wav"
    with pytest.raises(ValueError, match=message):
        run(monkeypatch, tmp_path, toy_task(), few, None, protocols=["likelihood"], min_coverage=0.95)
    with pytest.raises(ValueError, match="0 of 1 clips"):
        run(monkeypatch, tmp_path, toy_task(), few[1:], None, protocols=["likelihood"])


# -- Models -------------------------------------------------------------------------------------------------------


def test_the_likelihood_picks_what_a_rigged_model_would_say(tmp_path, clip):
    """A model that likes to say "R": of the three labels it would say "Rain", as likely as a plain forward says."""
    model, processor = tiny_model(), tiny_processor()
    head = torch.nn.Linear(32, 272)
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.zero_()[processor.tokenizer("R")["input_ids"]] = 40
    model.lm_head = head
    rows = items(clip, ["rain"], ["dog_bark"])
    result = evaluate(model, processor, rows, toy_task(), tmp_path, protocols=["likelihood"], max_new_tokens=2)
    assert [row["by_protocol"]["likelihood"]["label"] for row in result["predictions"]] == ["rain", "rain"]
    assert result["value"] == 0.5 and [row["correct"] for row in result["predictions"]] == [True, False]
    assert all(row["prediction"].startswith("R") for row in result["predictions"])
    inputs = processor(text=["What is it?"], audio=[[clip]], return_tensors="pt")
    answer = torch.tensor([processor.tokenizer("Rain")["input_ids"]])
    ids = torch.cat([inputs["input_ids"], answer], dim=1)
    with torch.no_grad():
        logits = model(input_ids=ids, input_features=inputs["input_features"]).logits[0, -5:-1].log_softmax(-1)
    expected = float(logits.gather(1, answer[0, :, None]).sum())
    assert result["predictions"][0]["by_protocol"]["likelihood"]["score"] == pytest.approx(expected, abs=1e-3)


@needs(SOUNDS)
@pytest.mark.skipif(not (SAM_TINY / "model.safetensors").exists(), reason="examples/sam-tiny is not here")
def test_sam_tiny_says_of_esc50_what_is_on_record(tmp_path):
    """Some clips of the 396 on record, in other batches."""
    recorded = json.loads((ROOT / "benchmarks" / "sam-tiny-esc50-fold4.json").read_text())["predictions"][::60]
    (tmp_path / "meta").mkdir()
    (tmp_path / "audio").mkdir()
    lines = ["filename,fold,category"]
    for row in recorded:
        (source,) = (SOUNDS / "audio").glob(f"*/{row['audio']}")
        (tmp_path / "audio" / row["audio"]).symlink_to(source.resolve())
        lines.append(f"{row['audio']},4,{row['reference']}")
    (tmp_path / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")
    model = SamForConditionalGeneration.from_pretrained(SAM_TINY)
    processor, clips = SamProcessor.from_pretrained(SAM_TINY), read_task("esc50", tmp_path, fold=4)
    options = {"protocols": ["names_label"], "max_new_tokens": 64, "batch_size": 3}
    result = evaluate(model, processor, clips, TASKS["esc50"], tmp_path / "work", **options)
    for row, old in zip(result["predictions"], recorded, strict=True):
        for key in ("audio", "prompt", "prediction", "reference", "correct"):
            assert row[key] == old[key]
    assert {row["fold"] for row in result["predictions"]} == {"4"}
    assert (result["protocol"], result["expected"]) == ("names_label", len(recorded))
    assert result["interval"] == list(wilson_interval(sum(row["correct"] for row in recorded), len(recorded)))
