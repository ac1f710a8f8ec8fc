"""What is drawn and written on pictures."""

import os

import numpy as np

from wsfast.cli.drawing import contact_sheet, write_text


def test_names_that_are_not_utf8_are_written_with_question_marks() -> None:
    name, shown = os.fsdecode(b"Pr\xfcfung"), "Pr?fung"
    picture = np.zeros((32, 96, 3), np.uint8)
    drawn, expected = picture.copy(), picture.copy()
    write_text(drawn, name, (2, 20), (255, 255, 255))
    write_text(expected, shown, (2, 20), (255, 255, 255))
    assert np.array_equal(drawn, expected)
    sheets = [contact_sheet([[picture]], [text], [text]) for text in (name, shown)]
    assert np.array_equal(*sheets)
