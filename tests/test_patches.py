import numpy as np
import pytest

from pyjuice_lvd.data.patches import from_patches, position_grid, to_patches
from pyjuice_lvd.errors import InputError


@pytest.mark.parametrize(("shape", "patch"), [((5, 8, 12, 3), (4, 4)), ((2, 8, 8, 1), (2, 4)), ((1, 6, 4, 3), (6, 4))])
def test_patches_put_together_are_the_images(shape, patch):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    patches = to_patches(images, patch)
    rows, cols = position_grid(shape[1], shape[2], patch)
    assert patches.shape == (shape[0], rows * cols, patch[0] * patch[1] * shape[3])
    assert patches.dtype == np.uint8
    assert patches.flags.c_contiguous
    np.testing.assert_array_equal(from_patches(patches, shape[1:], patch), images)


def test_positions_and_pixels_are_in_row_major_order():
    images = np.random.default_rng(1).integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)
    patches = to_patches(images, (2, 3))
    for position, (top, left) in enumerate([(0, 0), (0, 3), (2, 0), (2, 3)]):
        cut = images[:, top : top + 2, left : left + 3]
        np.testing.assert_array_equal(patches[:, position], cut.reshape(3, -1))


def test_no_images_are_no_patches():
    assert to_patches(np.empty((0, 8, 8, 1), np.uint8), (4, 4)).shape == (0, 4, 16)
    assert from_patches(np.empty((0, 4, 16), np.uint8), (8, 8, 1), (4, 4)).shape == (0, 8, 8, 1)


def test_errors_name_the_sizes():
    images = np.zeros((1, 10, 8, 3), np.uint8)
    with pytest.raises(InputError, match="patch: found 4x4 for images of 10x8"):
        to_patches(images, (4, 4))
    with pytest.raises(InputError, match="patch: found 2x3 for images of 10x8"):
        to_patches(images, (2, 3))
    with pytest.raises(InputError, match="patch: found 0x2"):
        position_grid(8, 8, (0, 2))
    with pytest.raises(InputError, match=r"patches: found shape \(2, 4, 15\), wanted \(N, 4, 16\)"):
        from_patches(np.zeros((2, 4, 15), np.uint8), (8, 8, 1), (4, 4))
