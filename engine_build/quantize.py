"""float32 -> int8 by NNCF, calibrated on real pictures."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from engine_build.errors import PicturesUnusable
from engine_build.export import quiet
from engine_build.pictures import PictureSet
from engine_build.progress import bar
from serve_app.manifest import InputSpec
from serve_app.types import Picture

CALIBRATION_PICTURES = 300


def calibration_pictures(pictures: PictureSet, spec: InputSpec) -> list[Picture]:
    """Up to 300 pictures as engine input, evenly from the whole set; files that do not decode are left out.

    Raises:
        PicturesUnusable: none of them decodes.
    """
    chosen = pictures.spread(CALIBRATION_PICTURES)
    read = [picture for _, picture in bar(chosen.read(spec), total=len(chosen), title="reading") if picture is not None]
    if not read:
        raise PicturesUnusable(f"none of the pictures in {pictures.description} can be read; pass --calibration DIR")
    return read


def quantize(model: Any, pictures: list[Picture], *, relu6: bool) -> Any:
    """An OpenVINO model -> the same in int8.

    Args:
        relu6: the net's activations are clipped to 0..6, as in MobileNets: there are no outliers to trade range
            against, so they get exact and asymmetric ranges.
    """
    with quiet():
        import nncf  # takes a second; fp32 builds do without it
        import torch.utils.cpp_extension  # noqa: F401 (NNCF imports it later, and it then logs that there is no CUDA)
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    logging.getLogger("nncf").setLevel(logging.ERROR)
    batches = [np.expand_dims(picture, 0) for picture in pictures]
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED if relu6 else nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(batches),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            # CPUs without VNNI add int8 products in 16 bits, which overflow in any layer, not in the first alone
            # (NNCF's default). efficientnet_lite0 agrees with fp32 on 99 % of pictures so, on 94 % by the default.
            overflow_fix=nncf.OverflowFix.ENABLE,
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX if relu6 else None,
        ),
    )
