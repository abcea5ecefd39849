"""What this machine is to a plan."""

from __future__ import annotations

import platform

from serve_app.plans import Machine
from serve_app.runtime.tensorrt import gpu_packages


def this_machine() -> Machine:
    """TensorRT, the first GPU, and the operating system of this machine.

    Raises:
        GpuMissing: there is no GPU, no driver, or not the packages.
    """
    with gpu_packages():
        import pycuda.driver as cuda
        import tensorrt as trt

        cuda.init()
        device = cuda.Device(0)
        major, minor = device.compute_capability()
        return Machine(
            tensorrt=trt.__version__,
            gpu=device.name(),
            compute_capability=f"{major}.{minor}",
            sm_count=device.get_attribute(cuda.device_attribute.MULTIPROCESSOR_COUNT),
            # Whole GiB: drivers differ in what they keep for themselves.
            memory_gib=round(device.total_memory() / 2**30),
            system=f"{platform.system()}-{platform.machine()}".lower(),
        )


def cuda_versions() -> tuple[str, str]:
    """Of CUDA: the newest that the driver knows, and the one pycuda was compiled for. For records, not for keys."""
    import pycuda.driver as cuda

    driver = cuda.get_driver_version()
    return f"{driver // 1000}.{driver % 1000 // 10}", ".".join(str(part) for part in cuda.get_version())
