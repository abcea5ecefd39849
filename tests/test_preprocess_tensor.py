from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import BrokenPicture
from serve_app.manifest import InputSpec
from serve_app.preprocess import from_tensor, make_preprocess
from serve_app.types import Picture, Tensor

SPEC = InputSpec(height=5, width=7, resize_size=7)


def normalised(picture: Picture, spec: InputSpec = SPEC) -> Tensor:
    """As torchvision's ToTensor and Normalize, in float32."""
    values = picture.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    mean, std = (np.asarray(one, np.float32)[:, None, None] for one in (spec.mean, spec.std))
    return (values - mean) / std


@pytest.mark.parametrize("spec", [SPEC, InputSpec(height=5, width=7, mean=(0.498,) * 3, std=(0.502,) * 3)])
def test_every_pixel_value_comes_back_as_it_was(spec: InputSpec) -> None:
    for start in range(0, 256, 35):
        picture = np.arange(start, start + 105).astype(np.uint8).reshape(5, 7, 3)
        back = from_tensor(normalised(picture, spec), spec)
        assert np.array_equal(back, picture)
        assert back.dtype == np.uint8
        assert back.flags.c_contiguous


@given(st.integers(0, 2**32 - 1))
def test_any_picture_comes_back(seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    assert np.array_equal(make_preprocess("fast", SPEC, 1000)(normalised(picture)), picture)


def test_beyond_black_and_white_is_black_and_white() -> None:
    assert (from_tensor(np.full((3, 5, 7), 1e6, np.float32), SPEC) == 255).all()
    assert (from_tensor(np.full((3, 5, 7), -1e6, np.float32), SPEC) == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_no_number_is_refused(value: float) -> None:
    tensor = np.zeros((3, 5, 7), np.float32)
    tensor[1, 2, 3] = value
    with pytest.raises(BrokenPicture, match="not finite"):
        from_tensor(tensor, SPEC)


@pytest.mark.parametrize("shape", [(3, 7, 5), (5, 7, 3), (1, 5, 7), (105,)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BrokenPicture, match="shape"):
        from_tensor(np.zeros(shape, np.float32), SPEC)
