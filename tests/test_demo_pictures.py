"""Laws of how pictures are laid out."""

import numpy as np
import pytest

from btcompress.demo.pictures import sheet


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.float32, 1.0)])
def test_a_sheet_has_each_image_in_its_row_and_column_and_white_between(dtype, white):
    images = (np.arange(2 * 3 * 4 * 5 * 3).reshape(2, 3, 4, 5, 3) % 199).astype(dtype)
    made = sheet(images, 2)
    assert made.shape == (2 * 6, 3 * 7, 3)
    assert made.dtype == dtype
    left = made.copy()
    for row in range(2):
        for column in range(3):
            place = slice(6 * row, 6 * row + 4), slice(7 * column, 7 * column + 5)
            assert np.array_equal(made[place], images[row, column])
            left[place] = white
    assert (left == white).all()
