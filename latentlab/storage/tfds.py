"""Data sets of TensorFlow Datasets as random-access sources: found or prepared, and what goes wrong told in one line.

Reading needs no TensorFlow, because the format is array_record; preparing does.
"""

import contextlib
import importlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from latentlab.errors import UserError, first_line


def prepared_builder(name: str, examples: str, check_features: Callable[[Any], None]) -> Any:
    """TFDS's builder of a data set, which it prepares if need be.

    Args:
        name: The data set. It is looked for in $TFDS_DATA_DIR or ~/tensorflow_datasets.
        examples: Names that would be right, for the message.
        check_features: Raises a UserError where the builder's features are unsuitable, before anything is downloaded.

    Raises:
        UserError: There is no such data set, or it cannot be prepared.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(f'tfds: cannot be imported ({error}): pip install -e ".[tfds]"') from error
    # TFDS reads the variable once, when it is imported; here it counts at the time of the call.
    data_dir = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:
        problem = "no such data set" if isinstance(error, tfds.core.DatasetNotFoundError) else first_line(error)
        raise UserError(f"tfds: {name} ({data_dir}): {problem}; expected e.g. {examples}") from error
    check_features(builder)
    if not (Path(builder.data_path).is_dir() and builder.is_prepared()):  # the latter warns where there is nothing
        _prepare(builder, name, data_dir)
    return builder


@contextlib.contextmanager
def reading(builder: Any, split: str) -> Iterator[None]:
    """Turn TFDS's errors into a `UserError` while the block reads records of a split.

    Raises:
        UserError: Whatever the block met: another format than array_record, or damaged files.
    """
    path = Path(builder.data_path)
    try:
        yield
    except NotImplementedError as error:
        raise UserError(
            f"tfds: {path} is in {builder.info.file_format.value} format, random access needs array_record: "
            f"delete it or set TFDS_DATA_DIR to another directory, "
            f"then run `tfds build {builder.name} --file_format=array_record`"
        ) from error
    except Exception as error:  # its readers, in C++, raise several kinds for a damaged file
        raise UserError(
            f"tfds: {path}: split {split!r} cannot be read ({first_line(error)}); delete it to prepare it anew"
        ) from error


def _prepare(builder: Any, name: str, data_dir: Path) -> None:
    try:  # before TFDS downloads anything; it forgets to require the second on Python 3.9 and later
        importlib.import_module("tensorflow")
        importlib.import_module("importlib_resources")
    except ImportError as error:
        missing = {"tensorflow": "TensorFlow"}.get(error.name or "", error.name or str(error))
        raise UserError(
            f'tfds: {name} is not prepared under {data_dir}; preparing it needs {missing}: pip install -e ".[tfds]"'
        ) from error
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # network, disk, checksums, and whatever else it meets
        raise UserError(
            f"tfds: {name} is not prepared under {data_dir} and preparing it failed ({first_line(error)}); "
            "it needs the network, or set TFDS_DATA_DIR to where it is prepared"
        ) from error
