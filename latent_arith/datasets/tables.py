"""Tables of attributes in the forms in which people have them, each recognised by its content."""

import csv
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int8

from latentlab.errors import UserError
from latentlab.storage.image_files import SUFFIXES

TABLES = ("list_attr_celeba.txt", "list_attr_celeba.csv", "CelebAMask-HQ-attribute-anno.txt", "lfw_attributes.txt")
OWN_TABLES = ("attributes.csv", "attributes.txt", "attributes.tsv")
PRESENT = {"1": 1, "+1": 1, "-1": -1, "0": 0, "1.0": 1, "-1.0": -1, "0.0": 0, "true": 1, "false": 0}


class Table(NamedTuple):
    """Attributes of images, in the order of the file."""

    ids: tuple[str, ...]
    names: tuple[str, ...]
    values: Int8[np.ndarray, "n attributes"]  # +1 or -1


def parse_table(content: bytes, name: str) -> Table:
    """Return a table; the values are ±1, or 0 and 1, or truth values.

    - CelebA's and CelebA-HQ's text: the number of images, a line of names, then an image id and its values a line.
    - Commas or tabs: a header, then an image a line; its id is in the first column, or the second after an index.
    - LFW's text: `#` lines, the last of them the header, then person, number and scores, separated by tabs. A score
      above 0 says that the attribute is there, and the id is `Aaron_Eckhart_0001.jpg`.

    Args:
        content: Of the file.
        name: Of the file, for messages.

    Raises:
        UserError: It is malformed, with the first line that is wrong.
    """
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: cannot be read as text ({error})") from error
    first = lines[0].strip() if lines else ""
    if first.startswith("#"):
        names, rows = _parse_lfw(lines, name)
        positive = True
    elif "," in first or "\t" in first:
        names, rows = _parse_separated(lines, name, "," if "," in first else "\t")
        positive = False
    else:
        names, rows = _parse_celeba(lines, name)
        positive = False
    if not names or not rows:
        raise UserError(f"{name}: {len(names)} attributes of {len(rows)} images, expected at least one of each")
    twice = [attribute for attribute, times in Counter(names).items() if times > 1]
    if twice:
        raise UserError(f"{name}: {twice[0]} is the name of several columns, expected one of each name")
    ids, values = _parse_values(rows, names, name, positive)
    most_common, times = Counter(ids).most_common(1)[0]
    if times > 1:
        raise UserError(f"{name}: {most_common} stands in it {times} times, expected once")
    return Table(ids, names, values)


Rows = list[tuple[int, str, list[str]]]
"""Number of the line, image id, and values as they stand there."""


def _parse_celeba(lines: Sequence[str], name: str) -> tuple[tuple[str, ...], Rows]:
    if len(lines) < 2 or not lines[0].strip().isdecimal():
        raise UserError(f"{name}: line 1 is {(lines or [''])[0][:20]!r}, expected the number of images, or a header")
    split = [(number, line.split()) for number, line in enumerate(lines[2:], 3) if line.split()]
    if int(lines[0]) != len(split):
        raise UserError(f"{name}: line 1 announces {int(lines[0])} images, the table has {len(split)}")
    return tuple(lines[1].split()), [(number, row[0], row[1:]) for number, row in split]


def _parse_separated(lines: Sequence[str], name: str, separator: str) -> tuple[tuple[str, ...], Rows]:
    try:
        rows = [(number, row) for number, row in enumerate(csv.reader(lines, delimiter=separator), 1) if any(row)]
    except csv.Error as error:
        raise UserError(f"{name}: is no table with {separator!r} between values ({error})") from error
    header, body = rows[0][1], rows[1:]
    first = body[0][1] if body else []
    column = next((at for at, word in enumerate(first[:2]) if word.strip().lower().endswith(SUFFIXES)), None)
    if column is None:
        raise UserError(
            f"{name}: line 1 begins with {lines[0][:20]!r}, expected image_id,NAME,… and names of pictures below"
        )
    names = tuple(word.strip() for word in header[column + 1 :])
    return names, [(number, row[column].strip(), row[column + 1 :]) for number, row in body if len(row) > column]


def _parse_lfw(lines: Sequence[str], name: str) -> tuple[tuple[str, ...], Rows]:
    headers = [line for line in lines if line.startswith("#")]
    _, *header = headers[-1].split("\t")
    if [word.strip().lower() for word in header[:2]] != ["person", "imagenum"]:
        raise UserError(f"{name}: its header is {headers[-1][:30]!r}, expected #, person, imagenum and names, by tabs")
    rows: Rows = []
    for number, line in enumerate(lines, 1):
        person, *rest = line.split("\t")
        if line.startswith("#") or not line.strip():
            continue
        if not rest or not rest[0].strip().isdecimal():
            raise UserError(f"{name}: line {number} is {line[:30]!r}, expected a person, a number and scores, by tabs")
        rows.append((number, f"{person.strip().replace(' ', '_')}_{int(rest[0]):04d}.jpg", rest[1:]))
    return tuple(word.strip().replace(" ", "_") for word in header[2:]), rows


def _parse_values(
    rows: Rows, names: tuple[str, ...], name: str, are_scores: bool
) -> tuple[tuple[str, ...], Int8[np.ndarray, "n attributes"]]:
    values = np.empty((len(rows), len(names)), np.int8)
    for index, (number, _, row) in enumerate(rows):
        if len(row) != len(names):
            raise UserError(f"{name}: line {number} has {len(row)} values, expected {len(names)}")
        for column, word in enumerate(row):
            value = _sign(word) if are_scores else PRESENT.get(word.strip().lower())
            if value is None:
                expected = "a number" if are_scores else "1 or -1, or 1 or 0"
                raise UserError(f"{name}: line {number}: {names[column]} is {word.strip()!r}, expected {expected}")
            values[index, column] = value
    if (values == 0).any() and (values == -1).any():
        place, column = np.argwhere(values == (0 if (values == -1).sum() > (values == 0).sum() else -1))[0]
        raise UserError(
            f"{name}: line {rows[place][0]}: {names[column]} is '{values[place, column]}', expected 1 or -1 in all "
            "lines, or 1 or 0 in all"
        )
    return tuple(image for _, image, _ in rows), np.where(values == 0, -1, values).astype(np.int8)


def _sign(word: str) -> int | None:
    try:
        score = float(word)
    except ValueError:
        return None
    return (1 if score > 0 else -1) if math.isfinite(score) else None
