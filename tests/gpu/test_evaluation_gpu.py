"""Evaluation and analysis on the GPU give the CPU's numbers."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_inputs, tiny_model, tiny_processor

from sam_lab.evaluation.items import Item
from sam_lab.evaluation.protocols import evaluate
from sam_lab.evaluation.tasks import Task
from sam_lab.paper.analysis import analyse_encoder

CLIPS = sorted(path for path in (Path(__file__).parents[2] / "examples" / "audio").iterdir() if path.suffix == ".ogg")
FUSED = {"num_heads": 8, "head_dim": 16, "hidden_size": 64}
ANSWERS = ["A dog barks.", "Rain", "It is a long train that slows down"]


def test_candidates_are_as_likely_as_on_the_cpu():
    model, inputs, processor = tiny_model(**FUSED).eval(), tiny_inputs(["Hi", "What do you hear?"]), tiny_processor()
    cpu = model.score_candidates(processor, inputs, ANSWERS)
    inputs = {name: tensor.cuda() for name, tensor in inputs.items()}
    for batch_size in (1, 64):
        gpu = model.cuda().score_candidates(processor, inputs, ANSWERS, batch_size)
        assert torch.equal(gpu.lengths.cpu(), cpu.lengths)
        assert (gpu.sums.cpu() - cpu.sums).abs().max() < 5e-3 * cpu.sums.abs().max()


def test_a_task_is_scored_as_on_the_cpu(tmp_path):
    labels = ("dog", "rain", "train")
    task = Task("toy", "Toy", "What?", labels, labels, "accuracy", 5, False, "", None)
    items = [Item(path.name, str(path), "What do you hear?", ("dog",)) for path in CLIPS]
    model, processor = tiny_model(**FUSED), tiny_processor()
    options = {"protocols": ["likelihood"], "max_new_tokens": 8, "batch_size": 3}
    cpu = evaluate(model, processor, items, task, tmp_path / "cpu", **options)
    gpu = evaluate(model.cuda(), processor, items, task, tmp_path / "gpu", **options)
    assert len(CLIPS) > 3 and gpu["count"] == cpu["count"] == len(CLIPS) and gpu["failed"] == []
    for ours, theirs in zip(gpu["predictions"], cpu["predictions"]):
        a, b = (each["by_protocol"]["likelihood"] for each in (ours, theirs))
        assert a["score"] == pytest.approx(b["score"], rel=5e-3)


def test_tokens_are_described_as_on_the_cpu():
    model, extractor = tiny_model(**FUSED), tiny_processor().feature_extractor
    cpu = analyse_encoder(model, extractor, CLIPS, with_connector=True)
    gpu = analyse_encoder(model.cuda(), extractor, CLIPS, with_connector=True)
    for part, other in ((gpu, cpu), (gpu["connector"], cpu["connector"])):
        assert part["token_similarity"]["mean"] == pytest.approx(other["token_similarity"]["mean"], abs=1e-3)
        assert part["effective_rank"]["mean"] == pytest.approx(other["effective_rank"]["mean"], abs=0.5)
