"""What is drawn and written on pictures."""

import os

import numpy as np
import pytest

from wsfast.cli.drawing import contact_sheet, write_text


@pytest.mark.parametrize("letter", [os.fsdecode(b"\xfc"), "\n", "\t"])
def test_what_no_line_of_text_can_hold_is_written_as_question_marks(letter: str) -> None:
    name, shown = f"Pr{letter}fung", "Pr?fung"
    picture = np.zeros((32, 96, 3), np.uint8)
    drawn, expected = picture.copy(), picture.copy()
    write_text(drawn, name, (2, 20), (255, 255, 255))
    write_text(expected, shown, (2, 20), (255, 255, 255))
    assert np.array_equal(drawn, expected)
    sheets = [contact_sheet([[picture]], ["image"], [text]) for text in (name, shown)]
    assert np.array_equal(*sheets)
