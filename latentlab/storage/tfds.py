"""Data sets of TensorFlow Datasets as random-access sources: found or prepared, and what goes wrong told in one line.

Reading needs no TensorFlow; preparing does. The format is array_record, or tfrecord as TensorFlow's users have it.
"""

import contextlib
import importlib
import io
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentlab.errors import UserError, first_line

TFRECORD_HEADER = 12  # bytes: the length of the record, and its checksum
TFRECORD_FOOTER = 4  # the checksum of the record


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
        UserError: Whatever the block met: another format, or damaged files.
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


@dataclass(frozen=True, eq=False)
class Records:
    """Serialized examples of a split, by row; several threads may read."""

    builder: Any
    split: str
    source: Any

    def __len__(self) -> int:
        return len(self.source)

    def features(self, row: int) -> Any:
        """Return the features of a record by name, undecoded: TFDS takes a millisecond to decode them all.

        Raises:
            UserError: The record is damaged.
        """
        from tensorflow_datasets.proto import tf_example_pb2

        with reading(self.builder, self.split):
            return tf_example_pb2.Example.FromString(self.source[row]).features.feature

    def image(self, row: int) -> bytes:
        """Return the file of a record's image.

        Raises:
            UserError: The record is damaged.
        """
        with reading(self.builder, self.split):
            content: bytes = self.features(row)["image"].bytes_list.value[0]
            return content


def read_records(builder: Any, split: str) -> Records:
    """Open the records of a split, `train` or several as `train+test`, in the order of their files.

    Raises:
        UserError: They cannot be read.
    """
    from tensorflow_datasets import decode

    with reading(builder, split):
        if builder.info.file_format.value == "tfrecord":
            paths = [Path(path) for name in split.split("+") for path in builder.info.splits[name].filepaths]
            source: Any = TfRecords(paths)
            expected = sum(builder.info.splits[name].num_examples for name in split.split("+"))
            if len(source) != expected:
                raise ValueError(f"it has {len(source)} records, expected {expected}")
        else:
            source = builder.as_data_source(split=split, deserialize_method=decode.DeserializeMethod.RAW_BYTES)
    return Records(builder, split, source)


class TfRecords:
    """Records of TFRecord files by row: their places are found in one pass, in which checksums are not compared."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Find the places.

        Raises:
            ValueError: A file is cut short or damaged.
        """
        self._places = list[tuple[Path, int, int]]()
        for path in paths:
            size, start = path.stat().st_size, 0
            with path.open("rb") as file:
                while start < size:
                    file.seek(start)
                    (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
                    start += TFRECORD_HEADER
                    if start + length + TFRECORD_FOOTER > size:
                        raise ValueError(f"{path.name} is cut short or damaged")
                    self._places.append((path, start, length))
                    start += length + TFRECORD_FOOTER

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, row: int) -> bytes:
        """Return a record."""
        path, start, length = self._places[row]
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)


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
