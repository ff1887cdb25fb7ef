"""Boxes of photographs from the tables that people keep, spreadsheets' included.

Cells may be separated by commas, semicolons, tabs or bars, numbers may have a decimal comma, rows
may have labels and empty cells, and a heading may say where the box is. What can be read in two
ways is refused, with its row: a box that is dropped looks like a picture without one.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from neural_mesh.storage.files import one_line, read_json, read_text
from neural_mesh.storage.pictures import PHOTOGRAPH_SUFFIXES

Box = tuple[float, ...]  # x0, y0, x1, y1

SEPARATORS = (",", ";", "\t", "|")
SEPARATOR_LINE = re.compile(r"sep=(.)\s*")  # the first line that Excel writes and reads
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+")
THOUSANDS = re.compile(r"[+-]?\d{1,3},\d{3}")
EXPECTED = "expected four numbers x0, y0, x1, y1"
# Headings, without blanks, lines and capitals.
FILE_COLUMNS = ("file", "filename", "filepath", "path", "image", "imagename", "photo", "picture")
CORNERS = (
    ("x0", "y0", "x1", "y1"),
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("minx", "miny", "maxx", "maxy"),
    ("left", "top", "right", "bottom"),
)
SIZES = {"w", "h", "width", "height"}


@dataclass(frozen=True)
class Boxes:
    """The boxes of a file, by name of the photograph.

    without: photographs that the file names without a box.
    """

    path: Path
    by_name: dict[str, list[Box]] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(map(len, self.by_name.values()))


def read_boxes(path: Path) -> Boxes:
    """The boxes in a file; a photograph may have several.

    path: csv with rows `file,x0,y0,x1,y1` (a heading may tell the columns), or json with
    {file: box or list of boxes}. Raises ValueError, naming the row, for anything that is no box,
    and where there is none at all.
    """
    if not path.is_file():
        raise FileNotFoundError(f"boxes not found: {path}")
    boxes = _of_json(path) if path.suffix.lower() == ".json" else _of_table(path)
    if not boxes.total:
        raise ValueError(f"{path}: no box in it; {EXPECTED} after the name of each photograph")
    return boxes


def _of_json(path: Path) -> Boxes:
    boxes = Boxes(path)
    for name, value in read_json(path).items():
        # A file has one box, a list of boxes, or none.
        if value is None or value == []:
            boxes.without.append(name)
            continue
        # A single box is a list of numbers, several are a list of lists.
        several = isinstance(value, list) and isinstance(value[0], list)
        for box in value if several else [value]:
            is_box = isinstance(box, list) and len(box) == 4
            numbers = _whole([_number(str(side), ",") for side in box] if is_box else [None])
            if numbers is None:
                raise ValueError(f"{path}: {name} has {box}, {EXPECTED}")
            boxes.by_name.setdefault(name, []).append(numbers)
    return boxes


# ---- tables ----


def _of_table(path: Path) -> Boxes:
    text = read_text(path)
    first, _, rest = text.partition("\n")
    if named := SEPARATOR_LINE.fullmatch(first):
        table = _Table(path, rest, named[1], first_row=2)
    else:
        # The separator that makes most rows boxes is the one; where none does, most cells.
        tables = [_Table(path, text, separator) for separator in SEPARATORS]
        table = max(tables, key=lambda table: (table.readable_rows(), table.most_cells))
    return table.boxes()


class _Table:
    """A text cut into cells by a separator. Raises ValueError when it cannot be cut."""

    def __init__(self, path: Path, text: str, separator: str, first_row: int = 1):
        self.path = path
        self.separator = separator
        self.rows: list[tuple[int, list[str]]] = []
        reader = csv.reader(io.StringIO(text), delimiter=separator)
        try:
            for row in reader:
                # Blank rows, with which spreadsheets often end, are passed over but counted.
                if "".join(row).strip():
                    number = first_row - 1 + reader.line_num
                    self.rows.append((number, [cell.strip() for cell in row]))
        except csv.Error as error:
            raise ValueError(f"{path}: not a table ({error})") from None
        self.most_cells = max((len(cells) for _, cells in self.rows), default=0)
        self.columns: list[int] = []  # of file, x0, y0, x1 and y1, where a heading names them
        if self.rows and self._is_heading(self.rows[0][1]):
            self.columns = self._columns(self.rows[0])
            self.rows = self.rows[1:]

    def _is_heading(self, cells: Sequence[str]) -> bool:
        """Whether no cell is a number or a picture; a row of one cell has lost its separator."""
        is_picture = Path(cells[0]).suffix.lower() in PHOTOGRAPH_SUFFIXES
        numbers = self._numbers(cells[1:])
        return len(cells) > 1 and not is_picture and numbers.count(None) == len(numbers)

    def _columns(self, heading: tuple[int, list[str]]) -> list[int]:
        number, cells = heading
        names = [re.sub(r"[\W_]", "", cell).lower() for cell in cells]
        # A table that has both corners and sizes is clear: the corners are used.
        for corners in CORNERS:
            if set(corners) <= set(names):
                file = next((k for k, name in enumerate(names) if name in FILE_COLUMNS), 0)
                return [file, *(names.index(corner) for corner in corners)]
        if SIZES & set(names):
            raise ValueError(
                f"{self.path}: row {number} names the columns {', '.join(cells)}, "
                "but boxes are two corners; write x0, y0, x1, y1"
            )
        return []

    def _numbers(self, cells: Sequence[str]) -> list[float | None]:
        return [_number(cell, self.separator) for cell in cells]

    def readable_rows(self) -> int:
        """How many rows have a box."""
        return sum(self._box(cells) is not None for _, cells in self.rows)

    def _box(self, cells: Sequence[str]) -> Box | None:
        """The box of a row: its only four numbers in a line, behind the name."""
        if self.columns:
            if max(self.columns) >= len(cells):
                return None
            return _whole(self._numbers([cells[column] for column in self.columns[1:]]))
        numbers = self._numbers(cells[1:])
        runs = [list(run) for is_gap, run in groupby(numbers, lambda n: n is None) if not is_gap]
        # Labels and scores may stand in the row as well; more than four numbers side by side could
        # be read in several ways.
        long_runs = [run for run in runs if len(run) >= 4]
        is_one = len(long_runs) == 1 and len(long_runs[0]) == 4
        return _whole(long_runs[0]) if is_one else None

    def boxes(self) -> Boxes:
        """All boxes; ValueError, naming the row, when there is one that cannot be read."""
        boxes = Boxes(self.path)
        file = self.columns[0] if self.columns else 0
        for number, cells in self.rows:
            name = cells[file] if file < len(cells) else ""
            box = self._box(cells)
            if box is not None and name:
                boxes.by_name.setdefault(name, []).append(box)
            elif name and len(cells) > 1 and not any(cells[:file] + cells[file + 1 :]):
                # Naming a picture without a box is a common way to say that it has none.
                boxes.without.append(name)
            else:
                values = one_line(", ".join(cells[1:])) or "nothing behind its name"
                raise ValueError(
                    f"{self.path}: row {number}, {one_line(name) or 'without a name'}, "
                    f"has {values}; {EXPECTED}"
                )
        return boxes


def _whole(numbers: Sequence[float | None]) -> Box | None:
    """All numbers, or None if one is missing."""
    there = tuple(number for number in numbers if number is not None)
    return there if len(there) == len(numbers) else None


def _number(cell: str, separator: str) -> float | None:
    """A finite number, or None. A comma is decimal unless it may separate thousands."""
    if DECIMAL_COMMA.fullmatch(cell) and (separator == ";" or not THOUSANDS.fullmatch(cell)):
        cell = cell.replace(",", ".")
    if not NUMBER.fullmatch(cell):
        return None
    # Text such as 1e999 is a number by its form, but infinite.
    number = float(cell)
    return number if abs(number) < float("inf") else None
