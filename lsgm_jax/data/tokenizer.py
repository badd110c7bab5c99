"""Texts to word pieces: BERT's tokenizer, with BERT's own vocabulary or one that is made for the captions at hand."""

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

from lsgm_jax.data.captions import Captions
from lsgm_jax.errors import DataError
from lsgm_jax.files import replacing

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
SPECIAL = (
    PAD,
    UNKNOWN,
    START,
    END,
    "[MASK]",
)  # the last for BERT's training alone, which old vocabularies lack
CHARACTERS = 1000  # that a vocabulary has at most; others are unknown
CHUNK = 10_000  # texts that are encoded at a time
SHOWN = 40  # characters of a text in a message


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Word pieces of lower-cased texts without accents; each word is cut into the longest pieces that there are.

    Reference: Devlin et al. 2019 (BERT); Wu et al. 2016, 4.1 (the pieces).

    Attributes:
        vocabulary: the pieces by number; what continues a word begins with `##`.

    Raises:
        ValueError: if it lacks what stands for filling, unknown words, beginning or end, or has a piece twice.
    """

    vocabulary: tuple[str, ...] = dataclasses.field(repr=False)

    def __post_init__(self):
        counts = collections.Counter(self.vocabulary)
        if missing := [piece for piece in SPECIAL[:4] if piece not in counts]:
            raise ValueError(f"no vocabulary of word pieces, it lacks {' '.join(missing)}")
        piece, count = counts.most_common(1)[0]
        if count > 1:
            raise ValueError(f"no vocabulary of word pieces, it has {piece!r} {count} times")

    @classmethod
    def train(cls, captions: Iterable[str], pieces: int) -> "Tokenizer":
        """A vocabulary of at most `pieces` for these texts, always the same for the same texts.

        It begins with BERT's five special pieces and the characters (the `CHARACTERS` most frequent ones). It warns if
        the texts do not give as many pieces: of what occurs once none is made.

        Raises:
            DataError: if the characters alone take more.
        """
        texts = list(captions)
        first = (*SPECIAL, *_alphabet(texts))
        if pieces < len(first):
            raise DataError(
                f"{pieces} word pieces are too few for the characters of the captions: give at least {len(first)}"
            )
        bert = _bert()
        # The library numbers the characters in the order of a hash table, another one in every run, and breaks ties
        # between pieces by these numbers. Special pieces it numbers as they are given: so these are special.
        bert.train_from_iterator(
            texts,
            vocab_size=pieces,
            special_tokens=list(first),
            limit_alphabet=0,  # besides these
            show_progress=len(texts) > 100_000,
        )
        number = bert.get_vocab()
        made = cls(tuple(sorted(number, key=number.__getitem__)))
        if made.pieces < pieces:
            warnings.warn(f"{len(texts)} captions give {made.pieces} word pieces, not {pieces}", stacklevel=2)
        return made

    @classmethod
    def read(cls, path: pathlib.Path) -> "Tokenizer":
        """The vocabulary in a file of one piece per line, such as BERT's `vocab.txt`.

        Raises:
            DataError: if it cannot be read, or is none.
        """
        try:
            lines = path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
            return cls(tuple(line.removesuffix("\r") for line in lines))
        except OSError as error:
            raise DataError(f"cannot read the vocabulary {path}: {error.strerror}") from error
        except ValueError as error:  # also of bytes that are no text
            raise DataError(f"{path} is {error}: give a vocab.txt with one piece per line") from error

    def write(self, path: pathlib.Path) -> None:
        """What `read` reads, in one step."""
        with replacing(path) as partial:
            partial.write_bytes("".join(f"{piece}\n" for piece in self.vocabulary).encode())

    @property
    def pieces(self) -> int:
        """How many there are; every number is below it."""
        return len(self.vocabulary)

    def encode(
        self, texts: Sequence[str], length: int, *, cut: bool = False
    ) -> Int32[np.ndarray, "texts length"]:
        """Numbers of [CLS], the pieces of a text, [SEP], and [PAD] up to `length`, as LDM's text encoder sees them.

        Args:
            cut: whether texts that are too long lose their ends, with one warning for all, or are refused.

        Raises:
            DataError: if a text is too long, and is not to be cut.
        """
        if length < 2:
            raise ValueError(f"length={length}: [CLS] and [SEP] need two")
        # Bytes of the command line that are no text cannot be encoded; they are unknown as any other word.
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
        """The empty text, which stands for no text."""
        return self.encode([""], length)[0]

    @functools.cached_property
    def _tokenizer(self) -> Any:
        return _bert({piece: number for number, piece in enumerate(self.vocabulary)})


@dataclasses.dataclass(frozen=True)
class EncodedCaptions:
    """All texts of the samples of a split as word pieces, from which training draws one per sample.

    Attributes:
        pieces: of every text that occurs.
        text: which of them the texts of all samples are, one sample after the other.
        first: where those of each sample begin in `text`; and, last, where those of the last sample end.
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
        """A text of each sample: any with the same probability if there is a generator, otherwise its first.

        Args:
            rng: draws for all of the batch.
            rows: those that are made, which are what they are in the whole batch.
        """
        first, count = self.first[indices], np.diff(self.first)[indices]
        if rng is not None:
            first = first + (rng.random(len(indices)) * count).astype(int)
        return self.pieces[self.text[first[rows]]]


def encode_captions(captions: Sequence[Captions], tokenizer: Tokenizer, length: int) -> EncodedCaptions:
    """The texts of each sample, of which it has at least one; those that are too long are cut, with one warning."""
    texts = list(itertools.chain.from_iterable(captions))
    number = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    return EncodedCaptions(
        pieces=tokenizer.encode(list(number), length, cut=True),
        text=np.array([number[text] for text in texts], int),
        first=np.cumsum([0, *map(len, captions)]),
    )


def _alphabet(texts: Sequence[str]) -> list[str]:
    """The characters of the texts, and those that continue words, each in the order of their numbers in Unicode."""
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
