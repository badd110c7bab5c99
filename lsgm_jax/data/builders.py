"""Builders of TFDS data sets: those of TFDS, the digits, and the sets of `lsgm data prepare`."""

import contextlib
import io
import pathlib
from collections.abc import Iterator
from typing import Any

from lsgm_jax.errors import DataError, first_line

PUBLISHED = (
    "mnist",
    "omniglot",
    "cifar10",
    "celebahq256",
    "imagenet32",
    "imagenet64",
)  # published sets that `lsgm data prepare` reads


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Suppresses the output of TFDS, which is a screenful for a second of work."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def prepared_builder(folder: pathlib.Path) -> Any:
    """Returns the builder of a prepared set, if its files say the same as when it was written."""
    import tensorflow_datasets as tfds

    remedy = f"remove it with  rm -r {folder.parent}  and prepare it again"
    try:
        builder: Any = tfds.builder_from_directory(folder)
        found = {split: info.num_examples for split, info in builder.info.splits.items()}
        written = dict(builder.info.metadata["images"])
    # The errors of the library for damaged files are not documented.
    except Exception as error:
        raise DataError(
            f"{folder} is damaged, its description cannot be read ({first_line(error)}): {remedy}"
        ) from error
    if found != written:
        raise DataError(f"{folder} is damaged, it has {found} images where {written} were written: {remedy}")
    return builder


def tfds_builder(name: str, data_dir: pathlib.Path) -> Any:
    """Returns the builder of a TFDS data set; the digits are prepared if they are not.

    Raises:
        DataError: if there is no such set, or it is not prepared.
    """
    import tensorflow_datasets as tfds

    from lsgm_jax.data import digits

    try:
        if name == "digits":
            # Several processes may prepare the digits at once; the first one to finish wins.
            with silence(), contextlib.suppress(FileExistsError):
                digits.Digits(data_dir=data_dir, file_format="array_record").download_and_prepare()
            builder: Any = digits.Digits(data_dir=data_dir, file_format="array_record")
        else:
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise DataError(_not_there(name, data_dir)) from error
    except OSError as error:
        raise DataError(f"cannot write the data set {name!r} to {data_dir}: {error.strerror}") from error
    if not builder.data_path.exists():
        where = f"data_dir={str(data_dir)!r}, file_format='array_record'"
        run = f"tfds.builder({name!r}, {where}).download_and_prepare()"
        raise DataError(_not_there(name, data_dir, f'python -c "import tensorflow_datasets as tfds; {run}"'))
    return builder


def _not_there(name: str, data_dir: pathlib.Path, command: str | None = None) -> str:
    if name in PUBLISHED:
        command = f"lsgm data prepare {name} --source=PATH --data_dir={data_dir}"
    if command:
        return f"data set {name!r} is not prepared in {data_dir}: run  {command}"
    return (
        f"TFDS has no data set {name!r}, nor has {data_dir}: set config.data.source to a folder of images, or make one "
        f"of them by  lsgm data prepare folder --source=PATH --name={name}"
    )
