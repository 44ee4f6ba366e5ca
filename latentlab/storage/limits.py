"""How much a file from anywhere may unpack to: one that announces more is refused before anything is unpacked."""

import zipfile

MOST_BYTES = 2**30
MOST_PIXELS = 50_000_000


def check_bytes(count: int) -> None:
    """Raise ValueError where something would take more than `MOST_BYTES`."""
    if count > MOST_BYTES:
        raise ValueError(f"unpacks to {count:,} bytes, expected at most {MOST_BYTES:,}")


def check_archive(archive: zipfile.ZipFile) -> None:
    """Raise ValueError where the members of a zip would together; none is unpacked beyond the size it announces."""
    check_bytes(sum(member.file_size for member in archive.infolist()))


def check_pixels(width: int, height: int) -> None:
    """Raise ValueError where an image has more than `MOST_PIXELS`."""
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width}×{height} pixels, expected at most {MOST_PIXELS // 10**6} megapixels")
