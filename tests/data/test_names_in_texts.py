"""Names of files with bytes that are no UTF-8, line ends and quotes, in what is written of them."""

from __future__ import annotations

import csv
import io
import os
import sys

from neural_mesh.machine.console import count, run_main
from neural_mesh.storage.files import csv_text, holds, one_line, write_text

LATIN = os.fsdecode(b"caf\xe9.jpg")
NAMES = ['a "quote".jpg', "two\nlines.jpg", "a\rreturn.jpg", "a,comma.jpg", "caf\u00e9.jpg", ""]


def test_a_table_gives_names_back_whatever_is_in_them():
    rows = [[name, 1.5] for name in NAMES]
    read = list(csv.reader(io.StringIO(csv_text(rows), newline="")))
    assert read == [[name, "1.5"] for name in NAMES]


def test_a_name_that_is_no_utf8_is_written_escaped_and_found_again(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, f"{LATIN}\n")
    assert path.read_text() == "caf\\xe9.jpg\n"
    assert holds(path, f"{LATIN}\n")
    write_text(path, "\ud800")  # half a character, as JSON can hold it
    assert path.read_text() == "\\ud800"


def test_a_line_of_a_list_stays_one():
    assert one_line("a\nb\x1b[31m\u2028c \u3000\u00e9") == "a\\nb\\x1b[31m\\u2028c \u3000\u00e9"


def test_a_name_that_a_terminal_cannot_show_ends_no_run(monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "ascii"))
    run_main(lambda: print(LATIN, "\u7167"))
    sys.stdout.flush()
    assert printed.getvalue() == b"caf\\udce9.jpg \\u7167\n"


def test_nouns_have_their_plurals():
    assert [count(2, noun) for noun in ("box", "category", "image")] == [
        "2 boxes",
        "2 categories",
        "2 images",
    ]
