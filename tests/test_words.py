"""One word for one thing, and the field's: what was said before the glossary (docs/notation.md) stands nowhere."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# What is not said, and what the field says.
FORBIDDEN = {
    r"\b(is|are|was|were) no numbers?\b|\bno numbers\b": "non-finite loss or gradient, NaN",
    r"\b(go|goes|going|gone|went) back\b": "roll back to the last checkpoint",
    r"\bNormals?\b|(\b|_)normal_(eps|error|bound|pixels|prior)\b|NormalPixels|NarrowNormal": "Gaussian",
    r"\btrain\.parts\b|\b(gradients|taken|batch) in parts\b|\bparts of (a|the) batch\b": "gradient accumulation",
    r"\bmoving averages?\b|\baveraged (parameters|weights)\b|meets?_(the_)?average|\bmeets? the average\b|"
    r"\baverage_(vae|first_stage)\b": "EMA parameters",
    r"\b(times|time|t) of (its|their|the encoder's) own\b|\bits own times\b": "separate t (Algorithm 2)",
    r"\btold\b|\bAsked\b|\bask(s|ed|ing)?\b|\bis_nothing\b": "condition, encode_condition, request; null condition",
    r"\bexaggerat\w*": "guidance scale",
    r"\b[Gg]ames?\b": "GANLoss, adversarial loss",
    r"\b[Ss]queez(es|ed|ing)\b|\b[Ss]queeze\b(?!-and|\"|=|\()|\bprices?\b": "quantize, sample, regularization_loss",
    r"\broll[ _-]?calls?\b|\bcalls in\b": "rendezvous",
    r"\bon (its|their|the) way\b": "sampling trajectories",
    r"\bpictures? completed\b|\bcompletions?\b|\bcompletes? (an? )?(images?|pictures?)\b": "inpainting",
    r"\b(is|are) worth\b|\bsamples' worth\b": "sample quality metrics",
    r"\b[Ss]coring\b|\b[Ss]cored\b|\bscorers?\b|\bScorer\b|score_table|score_images": "likelihood evaluation",
    r"\bKept\b|\bkept=": "evaluation cache",
    r'\bcarried\b(?!")': "non-trainable state",  # "carried" in quotes is a key of old checkpoints
    r"\bdenoise_separately\b|(?<![.\w])_?denoise\(": "joint_dsm_loss",
    r"\bplayers?\b": "generator and discriminator",
    r"\bwhole cop(y|ies)\b|\bwhole or divided\b|\bdivided over\b|\bdivided (arrays|state|parameters)\b|"
    r"\bwhole arrays\b": "replicated, sharded",
    r"\bseveral (steps )?at once\b|\bstep several\b": "scan over steps",
    r"\b(may|can) be continued\b|\bis continued\b": "resume",
    r"\b(left|leave|leaves|leaving) (out|alone)\b": "skipped, frozen",
}
KINDS = (".py", ".md", ".toml")
# The lists themselves.
SKIPPED = {
    "tests/test_words.py",
    "docs/notation.md",
    "lsgm_jax/config/renamed.py",
    "tests/config/test_renamed.py",
}
FOLDERS = ("lsgm_jax", "docs", "tests", "configs", "experiments", "benchmarks")


def texts():
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in KINDS]
    paths += [path for path in ROOT.iterdir() if path.suffix in KINDS]
    names = sorted(str(path.relative_to(ROOT)) for path in paths)
    return [name for name in names if name not in SKIPPED]


@pytest.mark.parametrize("name", texts())
def test_the_words_are_the_fields(name):
    found = []
    for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
        for pattern, instead in FORBIDDEN.items():
            found += [f"{name}:{number}: {match[0]!r}: say {instead}" for match in re.finditer(pattern, line)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("steps that are no numbers", "non-finite"),
        ("z_1 ~ Normal", "Gaussian"),
        ("the network is told the class", "condition"),
        ("samples on their way", "trajectories"),
    ],
)
def test_the_list_finds_what_it_forbids(line, instead):
    assert [says for pattern, says in FORBIDDEN.items() if re.search(pattern, line) and instead in says]
