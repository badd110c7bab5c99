"""BERT's WordPiece tokenizer, with the vocabulary of BERT or one trained on captions."""

import collections
import dataclasses
import functools
import itertools
import pathlib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int32
from tqdm import tqdm

from lsgm_jax.bounded import LIMITS, read_text, shown
from lsgm_jax.data.captions import Captions
from lsgm_jax.errors import DataError
from lsgm_jax.sealed import read_sealed, write_sealed

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
SPECIAL = (
    PAD,
    UNKNOWN,
    START,
    END,
    "[MASK]",
)  # [MASK] is for BERT's training only, and optional in a file
CHARACTERS = 1000  # most characters of a trained vocabulary; others are unknown
CHUNK = 10_000  # texts per call of the library
SHOWN = 40  # characters of a text in a message


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Splits lower-cased texts without accents into word pieces, greedily the longest ones of the vocabulary.

    Reference: Devlin et al. 2019 (BERT); Wu et al. 2016, section 4.1 (word pieces).

    Attributes:
        vocabulary: the pieces in the order of their ids; pieces within a word begin with `##`.

    Raises:
        ValueError: if [PAD], [UNK], [CLS] or [SEP] is missing, or a piece occurs twice.
    """

    vocabulary: tuple[str, ...] = dataclasses.field(repr=False)

    def __post_init__(self):
        counts = collections.Counter(self.vocabulary)
        if missing := [piece for piece in SPECIAL[:4] if piece not in counts]:
            raise ValueError(f"no vocabulary of word pieces, it lacks {' '.join(missing)}")
        piece, count = counts.most_common(1)[0]
        if count > 1:
            raise ValueError(f"no vocabulary of word pieces, it has {shown(piece)} {count} times")

    @classmethod
    def train(cls, captions: Iterable[str], pieces: int) -> "Tokenizer":
        """Trains a vocabulary of at most `pieces` on these texts; the result is deterministic.

        It begins with BERT's five special pieces and the `CHARACTERS` most frequent characters. It warns if the texts
        give fewer pieces, because a piece has to occur more than once.

        Raises:
            DataError: if `pieces` is less than the number of special pieces and characters.
        """
        texts = list(captions)
        first = (*SPECIAL, *_alphabet(texts))
        if pieces < len(first):
            raise DataError(
                f"{pieces} word pieces are too few for the characters of the captions: give at least {len(first)}"
            )
        bert = _bert()
        # The library assigns ids to characters in the order of a hash table, which differs between runs, and breaks
        # ties between pieces by these ids. Special pieces keep their order, so the characters are passed as special.
        bert.train_from_iterator(
            texts,
            vocab_size=pieces,
            special_tokens=list(first),
            limit_alphabet=0,  # besides the special ones
            show_progress=len(texts) > 100_000,
        )
        number = bert.get_vocab()
        made = cls(tuple(sorted(number, key=number.__getitem__)))
        if made.pieces < pieces:
            warnings.warn(f"{len(texts)} captions give {made.pieces} word pieces, not {pieces}", stacklevel=2)
        return made

    @classmethod
    def read(cls, path: pathlib.Path) -> "Tokenizer":
        """Reads a vocabulary from a file with one piece per line, such as BERT's `vocab.txt`.

        Raises:
            DataError: if the file cannot be read, or is not a vocabulary.
            DamagedError: if a run has written it, and it is not what was written.
        """
        remedy = "give a vocab.txt with one piece per line"
        lines = read_text(path, remedy=remedy).removesuffix("\n").split("\n")
        read_sealed(
            path
        )  # after the file is known to be small; compares its checksum, if a run has written it
        if (longest := max(map(len, lines))) > LIMITS.key:
            raise DataError(f"{path} has a line of {longest} characters: {remedy}")
        try:
            return cls(tuple(line.removesuffix("\r") for line in lines))
        except ValueError as error:
            raise DataError(f"{path} is {error}: {remedy}") from error

    def write(self, path: pathlib.Path) -> None:
        """Writes the file that `read` reads, in one step."""
        write_sealed(path, "".join(f"{piece}\n" for piece in self.vocabulary).encode())

    @property
    def pieces(self) -> int:
        """The size of the vocabulary."""
        return len(self.vocabulary)

    def encode(
        self, texts: Sequence[str], length: int, *, cut: bool = False
    ) -> Int32[np.ndarray, "texts length"]:
        """Returns the ids of [CLS], the pieces of a text, [SEP], and [PAD] up to `length`, as in LDM.

        Args:
            texts: any strings.
            length: ids per text, [CLS] and [SEP] included.
            cut: whether texts that are too long are truncated, with one warning for all, or refused.

        Raises:
            DataError: if a text is too long and `cut` is false.
        """
        if length < 2:
            raise ValueError(f"length={length}: [CLS] and [SEP] need two")
        # Bytes of the command line that are not UTF-8 are surrogates, which the library refuses; they become unknown.
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        chunks = tqdm(range(0, len(clean), CHUNK), desc="encoding texts", delay=1, leave=False)
        encoded = (self._tokenizer.encode_batch(clean[start : start + CHUNK]) for start in chunks)
        found = [encoding.ids for encoding in itertools.chain.from_iterable(encoded)]
        too_long = [index for index, ids in enumerate(found) if len(ids) > length]
        if too_long and not cut:
            raise _too_long(texts[too_long[0]], len(found[too_long[0]]) - 2, length - 2)
        if too_long:
            which = f"{len(too_long)} of {len(texts)} captions"
            warnings.warn(f"{which} have more than {length - 2} word pieces and are cut", stacklevel=2)
        numbers = np.full((len(texts), length), self.vocabulary.index(PAD), np.int32)
        for row, ids in zip(numbers, found, strict=True):
            fitting = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
            row[: len(fitting)] = fitting
        return numbers

    def empty(self, length: int) -> Int32[np.ndarray, "length"]:
        """Returns the ids of the empty text, the null condition."""
        return self.encode([""], length)[0]

    @functools.cached_property
    def _tokenizer(self) -> Any:
        return _bert({piece: number for number, piece in enumerate(self.vocabulary)})


@dataclasses.dataclass(frozen=True)
class EncodedCaptions:
    """The encoded texts of a split, from which training draws one per sample.

    Attributes:
        pieces: ids of every distinct text.
        text: row of `pieces` of each text, one sample after the other.
        first: index in `text` of the first text of each sample, and len(text) at the end.
    """

    pieces: Int32[np.ndarray, "distinct length"]
    text: Int[np.ndarray, "texts"]
    first: Int[np.ndarray, "ends"]

    def batch(
        self,
        indices: Int[np.ndarray, "batch"],
        rng: np.random.Generator | None = None,
        rows: slice = slice(None),
    ) -> Int32[np.ndarray, "rows length"]:
        """Returns one text of each sample: a uniform draw with a generator, otherwise the first.

        Args:
            indices: of the samples of a batch.
            rng: generator; draws for the whole batch.
            rows: rows of the batch that are returned. They do not depend on this argument.
        """
        first, count = self.first[indices], np.diff(self.first)[indices]
        if rng is not None:
            first = first + (rng.random(len(indices)) * count).astype(int)
        return self.pieces[self.text[first[rows]]]


def encode_captions(captions: Sequence[Captions], tokenizer: Tokenizer, length: int) -> EncodedCaptions:
    """Encodes the texts of each sample, at least one; texts that are too long are truncated, with one warning."""
    texts = list(itertools.chain.from_iterable(captions))
    number = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    return EncodedCaptions(
        pieces=tokenizer.encode(list(number), length, cut=True),
        text=np.array([number[text] for text in texts], int),
        first=np.cumsum([0, *map(len, captions)]),
    )


def _alphabet(texts: Sequence[str]) -> list[str]:
    """Returns the characters of the texts, then those that occur within words, each in the order of Unicode."""
    bert = _bert()
    counts, continuing = collections.Counter(), set()
    for text in tqdm(texts, desc="reading characters", delay=1, leave=False):
        for word, _ in bert.pre_tokenizer.pre_tokenize_str(bert.normalizer.normalize_str(text)):
            counts.update(word)
            continuing.update(word[1:])
    frequent = sorted(sorted(counts), key=counts.__getitem__, reverse=True)[:CHARACTERS]
    return sorted(frequent) + [f"##{character}" for character in sorted(continuing.intersection(frequent))]


def _bert(vocabulary: dict[str, int] | None = None) -> Any:
    try:
        from tokenizers import BertWordPieceTokenizer
    except ImportError as error:
        raise DataError("texts need the package tokenizers: run  pip install tokenizers") from error
    return BertWordPieceTokenizer(vocabulary, lowercase=True)


def _too_long(text: str, count: int, most: int) -> DataError:
    start = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return DataError(f"the text {start!r} has {count} word pieces, and there is room for {most}: shorten it")
