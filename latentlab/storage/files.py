"""The first bytes of a file, by which readers tell its format, and its checksum."""

import hashlib
from pathlib import Path

from latentlab.errors import UserError


def read_start(path: Path, md5: str | None = None, count: int = 8) -> bytes:
    """Return the first bytes of a file, after its MD5 was compared.

    Raises:
        UserError: The file cannot be read, or has another MD5.
    """
    try:
        with path.open("rb") as file:
            start = file.read(count)
            file.seek(0)
            found = None if md5 is None else hashlib.file_digest(file, "md5").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if md5 is not None and found != md5.lower():
        raise UserError(f"{path}: MD5 {found}, expected {md5.lower()}; fetch it again")
    return start
