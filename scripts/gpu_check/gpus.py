"""What GPUs could do at most, by their makers' own tables: dense, without the sparsity that such tables like to double
figures with.

The rows of T4, L4, A100 and RTX 4090 were compared with a second source. The others were written down without the
named page at hand: read it before you rely on such a row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from serve_app.manifest import Precision


@dataclass(frozen=True, slots=True)
class Peak:
    """One GPU at its best.

    Attributes:
        pattern: regular expression that its CUDA name matches.
        fp32: TFLOPS without tensor cores, as TensorRT computes when TF32 is off.
        fp16, int8: TFLOPS and TOPS of tensor cores, dense, with fp16 and int32 sums; None where no source says.
        memory_gb_s: 1e9 bytes per second.
        sm_count: where the name alone does not tell it from smaller ones.
        note: for a reader.
    """

    pattern: str
    fp32: float | None
    fp16: float | None
    int8: float | None
    memory_gb_s: float
    source: str
    sm_count: int | None = None
    note: str = ""

    def operations_per_s(self, precision: Precision) -> float | None:
        """Multiplications and additions, each counted."""
        tera = {"fp32": self.fp32, "fp16": self.fp16, "int8": self.int8}[precision]
        return None if tera is None else tera * 1e12


_NVIDIA = "https://www.nvidia.com/en-us/data-center"
_A100 = (
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/"
    "nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
)
_AMPERE = "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_HALVED = "half of the figure with sparsity, the only one given"
PEAKS = (
    Peak(r"\bT4$", 8.1, 65, 130, 320, f"{_NVIDIA}/tesla-t4/"),
    Peak(r"\bA10$", 31.2, 125, 250, 600, f"{_NVIDIA}/products/a10-gpu/"),
    Peak(r"\bL4$", 30.3, 121, 242, 300, f"{_NVIDIA}/l4/", note=_HALVED),
    Peak(r"\bL40S$", 91.6, 366, 733, 864, f"{_NVIDIA}/l40s/"),
    Peak(r"\bA100-(SXM4|PCIE)-40GB$", 19.5, 312, 624, 1555, _A100),
    Peak(r"\bA100 80GB PCIe$", 19.5, 312, 624, 1935, _A100),
    Peak(r"\bA100-SXM4-80GB$", 19.5, 312, 624, 2039, _A100),
    Peak(r"\bH100 80GB HBM3$", 67, 989, 1979, 3350, f"{_NVIDIA}/h100/", note=_HALVED),
    Peak(r"\bH100 NVL$", 60, 835, 1671, 3900, f"{_NVIDIA}/h100/", note=_HALVED),
    Peak(r"\bH200$", 67, 989, 1979, 4800, f"{_NVIDIA}/h200/", note=_HALVED),
    Peak(r"\bRTX 3090$", 35.6, 142, 284, 936, _AMPERE, note="half of it where sums are fp32"),
    Peak(r"\bRTX 4090$", 82.6, 330.3, 660.6, 1008, _ADA, note="half of it where sums are fp32"),
    Peak(
        r"\bOrin\b",
        5.3,
        None,
        85,
        204.8,
        "https://github.com/NVIDIA/Deep-Learning-Accelerator-SW and the Jetson AGX Orin technical brief",
        sm_count=16,
        note="AGX Orin 64 GB in its MAXN mode, GPU without DLAs",
    ),
    Peak(
        r"\bThor\b",
        None,
        None,
        None,
        273,
        "https://developer.nvidia.com/embedded/jetson-modules",
        note="no source for dense figures of these precisions was found",
    ),
)


def find_peak(gpu: str, sm_count: int) -> Peak | None:
    """Of a GPU by its CUDA name; None for one that is not in the table, and for parts of one (MIG)."""
    for peak in PEAKS:
        if re.search(peak.pattern, gpu.strip()) and peak.sm_count in (None, sm_count):
            return peak
    return None
