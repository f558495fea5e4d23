"""`score_candidates` against a forward without a cache over the processor's ids of prompt and answer."""

import json
from pathlib import Path
from unittest import mock

import pytest
import torch
from tiny import tiny_model, tiny_processor, tone
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from modeling_sam import SamForConditionalGeneration
from processing_sam import SamProcessor

# A prompt with two clips, one without, one with one; unequally long, so that a batch of them is padded.
PROMPTS = ["<|audio|><|audio|>Which of the two is it?", "Only text.", "What?"]
CLIPS = [[tone(0.5), tone(1.0, frequency=880)], [], [tone(2.0, frequency=220)]]
CANDIDATES = ["dog", "dog barking", "dogs", "A train passes, far away.", "é"]


@torch.no_grad()
def naive(model, processor, prompt, clips, candidate, end_of_text=True):
    """Log-likelihood of each token of the answer in the processor's own row for training, read whole."""
    row = processor(text=[prompt], audio=[clips], answer=[candidate], sampling_rate=16000, return_tensors="pt")
    labels = row.pop("labels")[0, 1:]
    scores = model(**row, use_cache=False).logits[0, :-1].log_softmax(dim=-1)
    kept = scores.gather(1, labels.clamp(min=0)[:, None])[labels != -100, 0]
    return kept if end_of_text else kept[:-1]


def check(scores, expected):
    """`expected[row][column]`: log-likelihoods by token."""
    for row, candidates in enumerate(expected):
        for column, tokens in enumerate(candidates):
            length = len(tokens)
            assert scores.lengths[row, column] == length
            found = scores.token_log_likelihoods[row, column]
            torch.testing.assert_close(found[:length], tokens, atol=1e-5, rtol=1e-5)
            assert (found[length:] == 0).all()
            torch.testing.assert_close(scores.sums[row, column], tokens.sum(), atol=1e-4, rtol=1e-5)
            torch.testing.assert_close(scores.means[row, column], tokens.mean(), atol=1e-5, rtol=1e-5)


def prompts(processor, side="left"):
    return processor(text=PROMPTS, audio=CLIPS, sampling_rate=16000, padding_side=side, return_tensors="pt")


@pytest.mark.parametrize("end_of_text", [True, False])
@pytest.mark.parametrize("connector", ["concatenation", "time_major"])
def test_equals_a_forward_over_prompt_and_candidate(connector, end_of_text):
    model, processor = tiny_model(connector), tiny_processor(connector)
    expected = [
        [naive(model, processor, prompt, clips, candidate, end_of_text) for candidate in CANDIDATES]
        for prompt, clips in zip(PROMPTS, CLIPS)
    ]
    for side in ("left", "right"):
        inputs = prompts(processor, side)
        before = {name: tensor.clone() for name, tensor in inputs.items()}
        for batch_size in (1, 4, 64):
            scores = model.score_candidates(processor, inputs, CANDIDATES, batch_size, end_of_text)
            check(scores, expected)
        assert all(torch.equal(inputs[name], tensor) for name, tensor in before.items())
    # what was compared depends on prompt and candidate
    assert len({round(float(value), 3) for value in scores.sums.flatten()}) == 15


def test_a_list_of_candidates_for_each_prompt():
    model, processor = tiny_model(), tiny_processor()
    rows = [["yes", "no"], ["a) rain"], ["one", "two", "three"]]
    scores = model.score_candidates(processor, prompts(processor), rows)
    check(scores, [[naive(model, processor, p, c, text) for text in row] for p, c, row in zip(PROMPTS, CLIPS, rows)])
    assert scores.sums.shape == scores.means.shape == scores.lengths.shape == (3, 3)
    assert scores.lengths.tolist() == [[4, 3, 0], [8, 0, 0], [4, 4, 6]]  # letters and end of text
    absent = scores.lengths == 0
    assert (scores.sums[absent] == -torch.inf).all() and (scores.means[absent] == -torch.inf).all()
    assert scores.sums.isfinite().sum() == 6 and scores.sums.argmax(dim=1)[1] == 0


def test_candidates_of_a_single_token():
    model, processor = tiny_model(), tiny_processor()
    scores = model.score_candidates(processor, prompts(processor), ["a", "b"], end_of_text=False)
    expected = [[naive(model, processor, p, c, text, False) for text in "ab"] for p, c in zip(PROMPTS, CLIPS)]
    check(scores, expected)
    assert scores.token_log_likelihoods.shape == (3, 2, 1)


def test_first_tokens_have_the_probabilities_of_the_next_token():
    model, processor = tiny_model(), tiny_processor()
    letters = [chr(code) for code in range(33, 127)]
    inputs = prompts(processor)
    total = model.score_candidates(processor, inputs, letters, end_of_text=False).sums.exp().sum(dim=1)
    with torch.no_grad():
        distribution = model(**inputs).logits[:, -1].softmax(dim=-1)
    ids = [processor.tokenizer(letter)["input_ids"][0] for letter in letters]
    torch.testing.assert_close(total, distribution[:, ids].sum(dim=1), atol=1e-5, rtol=1e-5)


def test_clips_and_prompts_are_read_once_and_memory_is_bounded():
    model, processor = tiny_model(), tiny_processor()
    inputs = prompts(processor)
    with (
        mock.patch.object(model.model, "get_audio_features", wraps=model.model.get_audio_features) as heard,
        mock.patch.object(model.model, "forward", wraps=model.model.forward) as forward,
    ):
        model.score_candidates(processor, inputs, [f"label {number}" for number in range(50)], batch_size=16)
    assert heard.call_count == 1
    shapes = [tuple(call.kwargs["input_ids"].shape) for call in forward.call_args_list]
    assert shapes[0] == tuple(inputs["input_ids"].shape)
    assert len(shapes) == 1 + 10  # 150 pairs
    assert all(rows <= 16 and width == len("label 00") + 1 for rows, width in shapes[1:5])


def test_the_answer_of_greedy_decoding_is_scored_as_it_was_chosen():
    folder = Path(__file__).parents[2] / "examples" / "sam-tiny"
    model = SamForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = SamProcessor.from_pretrained(folder)
    clip = folder.parent / "audio" / "dog.ogg"
    inputs = processor(text=["What do you hear?"], audio=[[clip]], return_tensors="pt")
    made = model.generate(**inputs, return_dict_in_generate=True, output_logits=True)
    new = made.sequences[0, inputs["input_ids"].shape[1] :]
    steps = torch.stack([step[0].log_softmax(dim=-1) for step in made.logits])
    answer = processor.decode(new, skip_special_tokens=True)
    assert processor.tokenize_texts([answer])[0] == new[:-1].tolist()  # the test's own premise
    others = [" " + answer, ".", "It rains and the wind blows."]
    scores = model.score_candidates(processor, inputs, [answer, *others], batch_size=2)
    check(scores, [[steps.gather(1, new[:, None])[:, 0]]])
    assert scores.means.argmax() == 0
    check(scores, [[naive(model, processor, "What do you hear?", [clip], text) for text in [answer, *others]]])


def test_no_token_reaches_over_the_border():
    """The template ends with a line break, which would merge with one at the beginning of a candidate."""
    model, processor = tiny_model(), tiny_processor()
    content = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    content["model"]["merges"].append(["Ċ", "Ċ"])
    content["model"]["vocab"].update({"<|audio|>": 258, "ĊĊ": 259})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    )
    processor = SamProcessor(processor.feature_extractor, tokenizer)
    assert processor.tokenize_texts(["\n\n\nRain"])[0] == [259, *processor.tokenize_texts(["\nRain"])[0]]
    texts = ["\nRain", "\n\nRain"]
    scores = model.score_candidates(processor, prompts(processor), texts)
    assert scores.lengths.tolist() == [[6, 7]] * 3
    check(scores, [[naive(model, processor, p, c, text) for text in texts] for p, c in zip(PROMPTS, CLIPS)])


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ("dog", "candidates: got 'dog', expected a list of texts, or for 3 prompts 3 lists"),
        ([], r"candidates: got \[\]"),
        (["dog", ""], "candidates: got '', expected text that is not blank"),
        (["dog", "<|audio|>"], r"candidates: got the special token <\|audio\|> in '<\|audio\|>' at position 1"),
        ([["dog"], ["cat"]], r"candidates: got 2 items \(list\)"),
        (["dog", ["cat"], ["cow"]], r"candidates: got 3 items \(list, str\)"),
        ([["dog"], [], ["cow"]], "candidates: got none for prompt 1"),
        ([["dog"], [["cat"]], ["cow"]], r"candidates: got \['cat'\]"),
        ([1, 2, 3], r"candidates: got 3 items \(int\)"),
    ],
)
def test_wrong_candidates(candidates, message):
    model, processor = tiny_model(), tiny_processor()
    with pytest.raises(ValueError, match=message):
        model.score_candidates(processor, prompts(processor), candidates)


def test_wrong_inputs():
    model, processor = tiny_model(), tiny_processor()
    inputs = prompts(processor)
    with pytest.raises(ValueError, match=r"inputs: got .* NoneType as attention_mask"):
        model.score_candidates(processor, {"input_ids": inputs["input_ids"]}, ["dog"])
    with pytest.raises(ValueError, match=r"inputs: got .* list as input_ids"):
        model.score_candidates(processor, processor(text=PROMPTS, audio=CLIPS, sampling_rate=16000), ["dog"])
    with pytest.raises(ValueError, match="inputs: got labels"):
        answered = processor(text="What?", audio=CLIPS[2], answer="A dog.", sampling_rate=16000, return_tensors="pt")
        model.score_candidates(processor, answered, ["dog"])
    with pytest.raises(ValueError, match="audio slots"):
        model.score_candidates(processor, {**inputs, "input_features": inputs["input_features"][:2]}, ["dog"])
    with pytest.raises(ValueError, match="batch_size: got 0"):
        model.score_candidates(processor, inputs, ["dog"], batch_size=0)
    with pytest.raises(ValueError, match="training mode"):
        tiny_model().train().score_candidates(processor, inputs, ["dog"])
