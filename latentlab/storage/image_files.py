"""Pictures and tables in a folder, as people unpack it or leave it packed: at any depth, and in zips, read in place."""

import os
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from latentlab.errors import UserError, first_line
from latentlab.storage import limits

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class StoredFile:
    """A file in a folder or a zip.

    Attributes:
        place: Its path, or that of the zip.
        member: Its name in the zip, "" outside of one.
        size: Bytes.
        version: Its checksum in a zip, else when it was changed, in nanoseconds.
        archive: The open zip; None outside of one.
    """

    place: Path
    member: str
    size: int
    version: int = 0
    archive: zipfile.ZipFile | None = None

    @property
    def name(self) -> str:
        """Name without folders."""
        return PurePosixPath(self.member).name if self.member else self.place.name

    @property
    def folder(self) -> str:
        """Where it lies, for messages."""
        return str(self.place / PurePosixPath(self.member).parent) if self.member else str(self.place.parent)

    def read(self) -> bytes:
        """Return the content; several threads may.

        Raises:
            OSError, ValueError: It cannot be read, or is larger than it says.
        """
        if self.archive is None:
            return self.place.read_bytes()
        limits.check_bytes(self.size)
        try:
            return self.archive.read(self.member)
        except Exception as error:  # zipfile and zlib raise many types for damaged files
            raise ValueError(f"{self.member} cannot be unpacked ({first_line(error)})") from error

    def __str__(self) -> str:
        return f"{self.place}/{self.member}" if self.member else str(self.place)


def list_files(root: Path, open_zips: bool = True) -> list[StoredFile]:
    """Return all files below a folder, also by symbolic links and in its zips, or those of one zip; hidden ones not.

    Args:
        root: Folder or zip.
        open_zips: List what is in a zip, not the zip.

    Raises:
        UserError: There is no such folder or zip, or it cannot be read.
    """
    try:
        if root.is_file():
            return sorted(_list_zip(root), key=str)
        if not root.is_dir():
            raise UserError(f"{root} is not a directory or a zip; expected one with the pictures")
        return sorted(_list_folder(root, {os.path.realpath(root)}, open_zips), key=str)
    except UserError:
        raise
    except Exception as error:  # zipfile raises many types for damaged files
        raise UserError(f"{root}: cannot be read ({first_line(error)})") from error


def find_file(files: Iterable[StoredFile], names: Sequence[str]) -> StoredFile | None:
    """Return the file with one of some names, in capitals or not: of the first name, and nearest to the root."""
    for wanted in names:
        found = [file for file in files if file.name.lower() == wanted.lower()]
        if found:
            return min(found, key=lambda file: (str(file).count("/"), str(file)))
    return None


def match_pictures(
    files: Iterable[StoredFile], ids: Sequence[str], root: Path, skip_bad: bool
) -> tuple[list[StoredFile | None], dict[str, str]]:
    """Return the picture of every id, None where there is none, and why pictures without an id are left out, by name.

    An id is a path below the root, or a name; its suffix may differ, `.JPG` or `.png` for `.jpg`.

    Args:
        files: From `list_files`.
        ids: From a table.
        root: What was listed, for messages.
        skip_bad: Leave rows without a picture and pictures without a row out, instead of refusing them.

    Raises:
        UserError: There are such, or several pictures of one name.
    """
    pictures = [file for file in files if file.name.lower().endswith(SUFFIXES)]
    by_name: dict[str, list[StoredFile]] = defaultdict(list)
    by_path = {path_below(file, root): [file] for file in pictures}
    for file in pictures:
        for name in {file.name, PurePosixPath(file.name).stem.lower()}:
            by_name[name].append(file)
    matched: list[StoredFile | None] = []
    for name in ids:
        found = by_path.get(name) or by_name.get(name) or by_name.get(PurePosixPath(name).stem.lower()) or []
        if "/" in name:  # a path is meant, and not a picture of that name elsewhere
            stem = str(PurePosixPath(name).with_suffix(""))
            found = [
                file for file in found if str(PurePosixPath(path_below(file, root)).with_suffix("")).endswith(stem)
            ]
        if len(found) > 1:
            raise UserError(f"{root}: {name} is there {len(found)} times, as {found[0]} and {found[1]}; expected once")
        matched.append(found[0] if found else None)
    for file, times in Counter(file for file in matched if file).items():
        if times > 1:
            name = ids[matched.index(file)]
            raise UserError(f"{root}: {file} is the picture of {times} rows, first {name}; expected one for each")
    folders = {file.folder for file in matched if file}
    known = {file for file in matched if file}
    unlisted = sorted(file.name for file in pictures if file not in known and (file.folder in folders or not folders))
    missing = [name for name, file in zip(ids, matched, strict=True) if file is None]
    if (missing or unlisted) and (not skip_bad or not folders):
        faults = [f"{len(missing)} of its rows have no image, first {missing[0]}"] if missing else []
        faults += [f"{len(unlisted)} images have no row, first {unlisted[0]}"] if unlisted else []
        count = len(known) + len(unlisted)
        raise UserError(
            f"{root}: the table has {len(ids)} rows, the folder {count} images: {'; '.join(faults)}"
            + ("; --skip-bad leaves them out" if folders else "")
        )
    return matched, dict.fromkeys(unlisted, "has no row in the table")


def path_below(file: StoredFile, root: Path) -> str:
    """Return the path of a file below the folder or in the zip that was listed."""
    return file.member or file.place.relative_to(root).as_posix()


def _list_folder(folder: Path, seen: set[str], open_zips: bool) -> Iterator[StoredFile]:
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if (real := os.path.realpath(path)) not in seen:  # links may lead in circles
                    yield from _list_folder(path, seen | {real}, open_zips)
            elif open_zips and path.suffix.lower() == ".zip":
                yield from _list_zip(path)
            elif entry.is_file():
                stat = entry.stat()
                yield StoredFile(path, "", stat.st_size, stat.st_mtime_ns)


def _list_zip(path: Path) -> Iterator[StoredFile]:
    archive = zipfile.ZipFile(path)
    for info in archive.infolist():
        parts = PurePosixPath(info.filename).parts
        if not info.is_dir() and not any(part.startswith((".", "__MACOSX")) for part in parts):
            yield StoredFile(path, info.filename, info.file_size, info.CRC, archive)
