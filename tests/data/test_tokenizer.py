"""Word pieces equal those of an independent BERT tokenizer, and training on captions is deterministic."""

import dataclasses
import os
import random
import subprocess
import sys
import unicodedata
import warnings

import numpy as np
import pytest

from lsgm_jax.data.pipeline import _Order, training_batches
from lsgm_jax.data.spec import DataSpec
from lsgm_jax.data.tokenizer import CHARACTERS, SPECIAL, EncodedCaptions, Tokenizer, encode_captions
from lsgm_jax.errors import DataError
from lsgm_jax.sealed import DamagedError


def texts(count, seed=0, letters="abcdefghij"):
    """Texts of words with common syllables, some with capitals, accents and punctuation."""
    rng = random.Random(seed)
    syllables = ["".join(rng.choices(letters, k=rng.randint(1, 3))) for _ in range(30)]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(80)] + [
        "Épée",
        "it's",
        "naïve,",
        "(a)",
    ]
    return [" ".join(rng.choices(words, k=rng.randint(0, 9))) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(texts(200), pieces=120)


def pieces_of(text, vocabulary):
    """Splits greedily into the longest pieces that fit, from the left; words that do not fit are unknown."""
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    spaced = "".join(f" {c} " if unicodedata.category(c)[0] == "P" else c for c in plain)
    found = ["[CLS]"]
    for word in spaced.split():
        cut, rest = [], word
        while rest:
            prefix = "##" if cut else ""
            ends = [end for end in range(len(rest), 0, -1) if prefix + rest[:end] in vocabulary]
            if not ends:
                cut = ["[UNK]"]
                break
            cut.append(prefix + rest[: ends[0]])
            rest = rest[ends[0] :]
        found += cut
    return [*found, "[SEP]"]


def test_encoding_takes_the_longest_pieces_that_fit(tokenizer):
    """On new texts, some with unknown letters; rows are padded with [PAD], which is 0."""
    unseen = texts(300, seed=1) + texts(50, seed=2, letters="abcxyz") + ["", " ", "jjjjjjjjjj", "a\tb\nc"]
    numbers = tokenizer.encode(unseen, 64)
    assert numbers.dtype == np.int32
    assert numbers.shape == (len(unseen), 64)
    unknown = 0
    for text, row in zip(unseen, numbers, strict=True):
        expected = pieces_of(text, tokenizer.vocabulary)
        unknown += expected.count("[UNK]")
        assert [tokenizer.vocabulary[number] for number in row] == expected + ["[PAD]"] * (64 - len(expected))
    assert unknown > 50
    assert numbers.max() < tokenizer.pieces
    assert tokenizer.vocabulary.index("[PAD]") == 0


def test_training_a_vocabulary_is_deterministic():
    """Also over processes, where hash tables differ; and the library is imported on first use only."""
    program = (
        "import sys; import lsgm_jax.data.pipeline; from lsgm_jax.data.tokenizer import Tokenizer;"
        "assert 'tokenizers' not in sys.modules; import tests.data.test_tokenizer as t;"
        "print(*Tokenizer.train(t.texts(200), 120).vocabulary)"
    )
    run = [sys.executable, "-c", program]
    runs = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) for _ in range(2)]
    found = {tuple(process.communicate()[0].split()) for process in runs}
    here = {Tokenizer.train(texts(200), 120).vocabulary for _ in range(5)}
    assert found == here
    assert len(here) == 1


def test_a_vocabulary_has_the_requested_size(tokenizer):
    """At least the special pieces and the characters; with a warning if the texts give fewer pieces."""
    with pytest.raises(
        DataError, match="3 word pieces are too few for the characters of the captions"
    ) as error:
        Tokenizer.train(texts(200), 3)
    fewest = int(str(error.value).rpartition(" ")[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for pieces in (fewest, fewest + 1, 100):
            made = Tokenizer.train(texts(200), pieces)
            assert made.pieces == pieces
            assert made.encode(texts(200), 64).max() < pieces
            assert made.vocabulary[:5] == SPECIAL
    assert not any(
        len(piece.removeprefix("##")) > 1 for piece in Tokenizer.train(texts(200), fewest).vocabulary[5:]
    )
    with pytest.raises(DataError, match=f"give at least {fewest}"):
        Tokenizer.train(texts(200), fewest - 1)
    with pytest.warns(UserWarning, match=r"2 captions give 9 word pieces, not 50"):
        assert Tokenizer.train(["ab", "ab"], 50).vocabulary == (*SPECIAL, "a", "b", "##b", "ab")


def test_rare_characters_beyond_the_limit_are_unknown():
    """Among equally rare ones, the last in Unicode."""
    letters = [chr(0x4E00 + index) for index in range(CHARACTERS + 200)]  # Chinese, which have no case
    captions = [" ".join(letters)] + [" ".join(letters[300:])] * 2
    with pytest.warns(UserWarning, match="give 1005 word pieces, not 2000"):
        made = {Tokenizer.train(captions, 2000) for _ in range(3)}
    (tokenizer,) = made
    unknown, known = tokenizer.vocabulary.index("[UNK]"), tokenizer.encode([" ".join(letters)], 1300)[0]
    assert np.flatnonzero(known[1:1201] == unknown).tolist() == list(range(100, 300))


def test_read_inverts_write(tokenizer, tmp_path):
    """Also with the line ends of Windows, and without a final line end."""
    tokenizer.write(tmp_path / "vocab.txt")
    assert Tokenizer.read(tmp_path / "vocab.txt") == tokenizer
    content = (tmp_path / "vocab.txt").read_bytes()
    assert content.decode().splitlines() == list(tokenizer.vocabulary)
    for other in (content.replace(b"\n", b"\r\n"), content[:-1]):
        (tmp_path / "other.txt").write_bytes(other)
        assert Tokenizer.read(tmp_path / "other.txt") == tokenizer
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"vocab.txt", ".vocab.txt.sha256", "other.txt"}


def test_the_vocabulary_of_bert_is_read(tmp_path):
    """It has [PAD] first, then unused pieces, the special ones from 100; line n is piece n."""
    lines = [
        "[PAD]",
        *(f"[unused{i}]" for i in range(99)),
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "##b",
        "dog",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(lines) + "\n")
    tokenizer = Tokenizer.read(tmp_path / "vocab.txt")
    assert tokenizer.encode(["AB dog cat"], 7).tolist() == [[101, 104, 105, 106, 100, 102, 0]]
    assert tokenizer.empty(4).tolist() == [101, 102, 0, 0]


def test_truncation_equals_that_of_the_library(tokenizer):
    """The padding and truncation that LDM uses, which keep [SEP] at the end."""
    from tokenizers import BertWordPieceTokenizer

    theirs = BertWordPieceTokenizer(
        {piece: i for i, piece in enumerate(tokenizer.vocabulary)}, lowercase=True
    )
    theirs.enable_truncation(max_length=9)
    theirs.enable_padding(length=9)
    captions = texts(50)
    too_long = sum(len(pieces_of(text, tokenizer.vocabulary)) > 9 for text in captions)
    message = f"^{too_long} of 50 captions have more than 7 word pieces and are cut$"
    with pytest.warns(UserWarning, match=message) as said:
        ours = tokenizer.encode(captions, 9, cut=True)
    assert len(said) == 1
    np.testing.assert_array_equal(ours, [encoding.ids for encoding in theirs.encode_batch(captions)])


def test_a_prompt_that_is_too_long_is_refused(tokenizer):
    text = "a b c " * 20
    assert tokenizer.encode([text], 62)[0, -1] == tokenizer.vocabulary.index("[SEP]")
    with pytest.raises(DataError) as error:
        tokenizer.encode(["a", text], 61)
    start = "a b c " * 6 + "a b "
    assert (
        str(error.value) == f"the text '{start}...' has 60 word pieces, and there is room for 59: shorten it"
    )
    with pytest.raises(ValueError, match=r"length=1: \[CLS\] and \[SEP\] need two"):
        tokenizer.encode(["a"], 1)


def test_the_empty_text_has_cls_and_sep_alone(tokenizer):
    begin, end = map(tokenizer.vocabulary.index, ("[CLS]", "[SEP]"))
    assert tokenizer.empty(5).tolist() == [begin, end, 0, 0, 0]


def test_bytes_that_are_not_utf_8_are_unknown(tokenizer):
    """Python passes such arguments of the command line as surrogates."""
    broken = b"a \xff b".decode("utf-8", "surrogateescape")
    unknown = tokenizer.vocabulary.index("[UNK]")
    assert tokenizer.encode([broken], 5)[0, 2] == unknown


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"it lacks \[PAD\] \[UNK\] \[CLS\] \[SEP\]: give a vocab.txt with one piece per line"),
        (b"[PAD]\n[CLS]\n[SEP]\na\n", r"no vocabulary of word pieces, it lacks \[UNK\]"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nb\na\n", "it has 'a' 2 times"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n\n\nb\n", "it has '' 2 times"),
        (b"[PAD]\n[UNK]\n\xff\n", "vocab.txt is no text in UTF-8 .*: give a vocab.txt"),
        (b'{"model": {"vocab": {"[PAD]": 0}}}', r"it lacks \[PAD\]"),
    ],
)
def test_an_invalid_vocabulary_is_refused_in_one_line(tmp_path, content, message):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        Tokenizer.read(tmp_path / "vocab.txt")
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_changed_vocabulary_of_a_run_is_refused(tmp_path):
    """Another piece in the place of one would be another condition."""
    path = tmp_path / "vocabulary.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nb\n")
    Tokenizer.read(path).write(path)
    path.write_text(path.read_text().replace("b", "c"))
    with pytest.raises(DamagedError, match=r"vocabulary\.txt is damaged"):
        Tokenizer.read(path)


def test_a_missing_vocabulary_is_named(tmp_path):
    with pytest.raises(DataError, match=f"cannot read {tmp_path}/none: No such file"):
        Tokenizer.read(tmp_path / "none")


def test_the_error_for_the_missing_library_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    tokenizer = Tokenizer(SPECIAL)
    for use in (lambda: Tokenizer.train(["a"], 9), lambda: tokenizer.encode(["a"], 4)):
        with pytest.raises(
            DataError, match=r"^texts need the package tokenizers: run  pip install tokenizers$"
        ):
            use()


# One of several texts


@pytest.fixture
def captions(tokenizer):
    """The encoded texts of four samples, which share some texts."""
    return encode_captions([("a", "b", "c"), ("b",), ("", "j"), ("c", "c a")], tokenizer, 5)


def words(tokenizer, rows):
    """Returns the texts of the pieces."""
    shown = [[tokenizer.vocabulary[number] for number in row if number] for row in rows]
    return [" ".join(pieces[1:-1]) for pieces in shown]


def test_without_a_generator_the_first_text_is_taken(tokenizer, captions):
    assert words(tokenizer, captions.batch(np.arange(4))) == ["a", "b", "", "c"]
    assert words(tokenizer, captions.batch(np.array([3, 0, 3]))) == ["c", "a", "c"]


def test_the_texts_of_a_sample_are_drawn_uniformly(tokenizer, captions):
    rng, count = np.random.default_rng(0), 3000
    for sample, expected in enumerate([["a", "b", "c"], ["b"], ["", "j"], ["c", "c a"]]):
        drawn = words(tokenizer, captions.batch(np.full(count, sample), rng))
        assert set(drawn) == set(expected)
        for text in expected:
            share = 1 / len(expected)
            assert abs(drawn.count(text) - count * share) <= 5 * np.sqrt(count * share * (1 - share))


def test_rows_of_a_batch_do_not_depend_on_the_slice(captions):
    indices = np.random.default_rng(1).integers(0, 4, 40)
    batch = captions.batch(indices, np.random.default_rng(2))
    for rows in (slice(0, 20), slice(20, 40)):
        np.testing.assert_array_equal(captions.batch(indices, np.random.default_rng(2), rows), batch[rows])


def test_training_draws_a_text_of_each_image(tokenizer, data_dir):
    """Anew in every epoch, exactly resumed, and without an effect on the images."""
    spec = DataSpec(source="digits", image_shape=(8, 8, 1), batch_size=240, flip=True, data_dir=str(data_dir))
    samples = dataclasses.replace(spec, splits=("test",) * 3).open("train")
    owned = [(f"a {'abc' * (index % 7)}", f"b {'abc' * (index % 7)}") for index in range(240)]
    texts = encode_captions(owned, tokenizer, 24)
    alone, batches = (training_batches(samples, 3, condition) for condition in (None, texts))
    drawn, states = [], []
    for number in range(3):  # an epoch each
        states.append(batches.get_state())
        batch, order = next(batches), _Order(240, 240, 3).batch(number)
        np.testing.assert_array_equal(batch["x"], next(alone)["x"])
        first, second = (tokenizer.encode([owned[index][k] for index in order], 24) for k in (0, 1))
        is_first = (batch["condition"] == first).all(axis=1)
        np.testing.assert_array_equal(batch["condition"][~is_first], second[~is_first])
        assert 80 < is_first.sum() < 160
        drawn.append(is_first[np.argsort(order)])
    assert not np.array_equal(drawn[0], drawn[1])
    again = training_batches(samples, 3, texts)
    again.set_state(states[2])
    np.testing.assert_array_equal(next(again)["condition"], batch["condition"])


def test_long_captions_are_truncated_with_one_warning(tokenizer):
    with pytest.warns(
        UserWarning, match="^2 of 3 captions have more than 2 word pieces and are cut$"
    ) as said:
        encoded = encode_captions([("a b c", "a b"), ("j j j j",)], tokenizer, 4)
    assert len(said) == 1
    assert words(tokenizer, encoded.batch(np.arange(2))) == ["a b", "j j"]
    assert isinstance(encoded, EncodedCaptions)
    assert len(encode_captions([("a",)] * 50 + [("b", "a")], tokenizer, 4).pieces) == 2
