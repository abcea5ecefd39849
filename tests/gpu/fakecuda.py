"""A CUDA driver for machines without a GPU: pycuda and cuda-bindings run on it unchanged, in a process of their own.

What it does: memory is host memory, copies copy, and nothing that is queued in a stream runs before somebody waits for
it (a query runs one operation of its stream), so what is read too early is stale, and what is overwritten too early is
wrong. `FakeCuda.shuffle` makes queued work run at other permitted times instead. Misuse is answered as by CUDA, as far
as that is documented, and is in `Report.violations`. Times between events are scripted, not measured.

**Processes.** A loaded libcuda.so.1 cannot be unloaded, and every library of the process that looks for a GPU finds it:
torch's CUDA build warns of a driver that it cannot use. So no test of the ordinary session loads it. The tests that
need it are in files that pytest does not collect by itself, run in a process with it on LD_LIBRARY_PATH:

    # tests/gpu/thing_cases.py                       # tests/test_thing.py
    from tests.gpu import fakecuda                   from tests.gpu import fakecuda

    cuda = fakecuda.load()  # before pycuda          CASES = fakecuda.Cases("thing_cases.py")

    import pycuda.driver                             @pytest.mark.parametrize("case", CASES.names())
                                                     def test_thing(case: str) -> None:
    @pytest.fixture(autouse=True)                        CASES.check(case)
    def fresh() -> None:
        cuda.reset()

`python -m tests.gpu.fakecuda tests/gpu/thing_cases.py -k NAME` runs them alone, with pytest's arguments.
"""

from __future__ import annotations

import ast
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from tests.gpu.fakecuda_build import SONAME, build, why_missing

_HERE = Path(__file__).parent
_MARK = "IMAGE_SERVE_FAKE_CUDA"
_TIMEOUT_S = 300
_KERNEL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_LAUNCH_FAILED = 719
GIB = 2**30


class _Range(ctypes.Structure):
    _fields_ = (("at", ctypes.c_ulonglong), ("size", ctypes.c_size_t))


@dataclass(frozen=True, slots=True)
class Report:
    """What is left on the device, and what went wrong since the last reset.

    Attributes:
        violations: misuse, in the driver's words.
        calls: driver functions called, in order, with the suffixes that cuda.h gives them (cuMemAlloc_v2).
        threads: native thread id -> pushes and pops of contexts.
        device_blocks, pinned_blocks: allocations that are not freed.
        busy_streams: those with work that has not run.
        graphs, executables: recorded and instantiated, not destroyed.
        primary_references: retains without release.
        contexts: besides the primary one.
        pageable_copies: asynchronous copies of memory that is not pinned, which makes them synchronous.
    """

    violations: list[str]
    calls: list[str]
    threads: dict[str, list[int]]
    device_blocks: int
    pinned_blocks: int
    streams: int
    busy_streams: int
    events: int
    graphs: int
    executables: int
    primary_references: int
    contexts: int
    pageable_copies: int

    def leaks(self) -> dict[str, int]:
        """What was not given back, by the names above."""
        names = ("device_blocks", "pinned_blocks", "streams", "events", "graphs", "executables")
        counts = {name: getattr(self, name) for name in (*names, "primary_references", "contexts")}
        return {name: count for name, count in counts.items() if count}

    def is_balanced(self) -> bool:
        """Whether every thread popped what it pushed."""
        return all(pushes == pops for pushes, pops in self.threads.values())

    def check(self) -> None:
        """Everything was given back and nothing misused; for the end of a test.

        Raises:
            AssertionError: that is not so; it says what.
        """
        assert not self.violations, "misuse of CUDA: " + "; ".join(self.violations)
        assert self.is_balanced(), f"contexts pushed and popped, by thread: {self.threads}"
        assert not self.leaks(), f"not given back: {self.leaks()}"


@dataclass(slots=True, eq=False)
class FakeCuda:
    """Control of the stand-in in this process.

    Attributes:
        kernel_errors: what kernels raised since the last reset.
    """

    _library: ctypes.CDLL
    kernel_errors: list[BaseException] = field(default_factory=list)
    _kernels: list[Any] = field(default_factory=list)

    def reset(self) -> None:
        """Everything as new: a card of 8 GiB, no faults; what is still alive is forgotten. The calling thread's pycuda
        must have no context on its stack."""
        gc.collect()  # what only a cycle holds is not to be freed in the next test
        self._library.fakecuda_reset()
        self._kernels.clear()
        self.kernel_errors.clear()

    def device(
        self,
        name: str = "Fake GPU",
        *,
        compute_capability: tuple[int, int] = (8, 9),
        sm_count: int = 58,
        total_bytes: int = 8 * GIB,
        reserved_bytes: int = 0,
    ) -> None:
        """Sets what the card is; `reserved_bytes` is what other processes hold of its memory."""
        total, reserved = ctypes.c_size_t(total_bytes), ctypes.c_size_t(reserved_bytes)
        self._library.fakecuda_device(name.encode(), total, reserved)
        for attribute, value in zip((75, 76, 16), (*compute_capability, sm_count), strict=True):  # CUdevice_attribute
            self._library.fakecuda_attribute(attribute, value)

    def times(self, **ms: float) -> None:
        """Sets how long an operation takes: htod, dtoh, dtod, memset, kernel, host; each 1 ms at first."""
        for kind, value in ms.items():
            self._library.fakecuda_time(kind.encode(), ctypes.c_double(value))

    def shuffle(self, seed: int) -> None:
        """From now on, some queued work runs whenever more is queued, in an order that the streams' rules allow."""
        self._library.fakecuda_shuffle(seed)

    def fail(self, function: str, error: int, *, call: int = 1, times: int = 1, sticky: bool = False) -> None:
        """Makes a call fail: the `call`-th from now of the driver function of that name (cuMemAlloc_v2).

        Args:
            times: how many calls fail, from that one on. pycuda collects garbage and tries again when memory is out.
            error: a CUresult.
            sticky: the context is broken from then on, as by CUDA_ERROR_ILLEGAL_ADDRESS.
        """
        self._library.fakecuda_fail(function.encode(), ctypes.c_long(call), ctypes.c_long(times), int(error), sticky)

    def violation(self, what: str) -> None:
        """Records misuse of something that stands in for a library on top of CUDA."""
        self._library.fakecuda_violation(what.encode())

    def enqueue(
        self,
        stream: int,
        kernel: Callable[[], None],
        *,
        uses: Sequence[tuple[int, int]] = (),
        ms: float | None = None,
    ) -> int:
        """Queues a Python function in a stream, by its handle; in a capture it is recorded, and runs with each launch.

        Args:
            kernel: may not call CUDA; what it raises breaks the context, as a failed kernel does.
            uses: address and bytes of the memory it touches, which must be there when it runs.
            ms: how long it takes.

        Returns:
            A CUresult, 0 for success.
        """

        def run(_: object) -> int:
            try:
                kernel()
            except BaseException as error:
                self.kernel_errors.append(error)
                self.violation(f"a kernel raised {error!r}")
                return _LAUNCH_FAILED
            return 0

        function = _KERNEL(run)
        self._kernels.append(function)  # a graph may launch it again
        ranges = (_Range * len(uses))(*(_Range(*one) for one in uses))
        time_ms = ctypes.c_double(-1 if ms is None else ms)
        arguments = (ctypes.c_void_p(stream), function, None, time_ms, ranges, ctypes.c_size_t(len(uses)))
        return int(self._library.fakecuda_enqueue(*arguments))

    def view(self, address: int, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Device memory as a kernel sees it.

        Raises:
            IndexError: it is not all allocated; that is a violation too.
        """
        count, size = int(np.prod(shape)), np.dtype(dtype).itemsize
        if not self._library.fakecuda_may_use(ctypes.c_ulonglong(address), ctypes.c_size_t(count * size)):
            raise IndexError(f"{count * size} bytes at {address:#x} are not all allocated")
        memory = memoryview((ctypes.c_char * (count * size)).from_address(address))
        array: NDArray[Any] = np.frombuffer(memory, dtype).reshape(shape)
        return array

    def report(self) -> Report:
        """What happened since the last reset, and what is left."""
        size = 1 << 16
        while True:
            text = ctypes.create_string_buffer(size)
            needed = self._library.fakecuda_report(text, ctypes.c_size_t(size))
            if needed <= size:
                return Report(**json.loads(text.value))
            size = 2 * needed


def environment() -> dict[str, str]:
    """Of a process that is to run on the stand-in."""
    paths = [str(build().parent), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(paths), _MARK: "1"}


def load() -> FakeCuda:
    """Makes the stand-in this process's driver; before pycuda or cuda-bindings are imported.

    Raises:
        RuntimeError: this is not a process that was started with `environment`.
    """
    if _MARK not in os.environ:
        raise RuntimeError("the stand-in for the CUDA driver needs a process of its own: use fakecuda.Cases")
    return _loaded()


@lru_cache(maxsize=1)
def _loaded() -> FakeCuda:
    library = ctypes.CDLL(SONAME)  # not global: pycuda must be linked to it
    library.fakecuda_report.restype = ctypes.c_size_t
    return FakeCuda(library)


@dataclass(frozen=True, slots=True)
class Cases:
    """The tests of one file (a path from this folder), run together in a process on the stand-in."""

    file: str

    def names(self) -> list[str]:
        """Its test functions."""
        tree = ast.parse((_HERE / self.file).read_text())
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        return [node.name for node in functions if node.name.startswith("test_")]

    def check(self, name: str) -> None:
        """Fails as the function did, or skips as it did; skips where there is no stand-in."""
        if reason := why_missing():
            pytest.skip(f"the stand-in for the CUDA driver: {reason}")
        outcomes, output = _run(self.file)
        if name not in outcomes:
            pytest.fail(f"{self.file} ended before {name}:\n{output}", pytrace=False)
        kind, text = outcomes[name]
        if kind == "skipped":
            pytest.skip(text)
        if kind != "passed":
            pytest.fail(f"{text}\nalone: python -m tests.gpu.fakecuda {_HERE / self.file} -k {name}", pytrace=False)


@lru_cache
def _run(file: str) -> tuple[dict[str, tuple[str, str]], str]:
    """Function -> how it ended, with pytest's words; and the process's output."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        done = subprocess.run(
            [*_pytest(), str(_HERE / file), f"--junitxml={results}"],
            cwd=_HERE.parent.parent,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        outcomes: dict[str, tuple[str, str]] = {}
        for case in ElementTree.parse(results).iter("testcase") if results.is_file() else ():
            name = case.attrib["name"].partition("[")[0]
            if outcomes.get(name, ("passed", ""))[0] == "passed":  # of several parameters, the first that did not
                outcomes[name] = _outcome(case)
        return outcomes, done.stdout


def _outcome(case: ElementTree.Element) -> tuple[str, str]:
    for kind in ("failure", "error", "skipped"):
        if (found := case.find(kind)) is not None:
            return kind, found.attrib.get("message", "") if kind == "skipped" else (found.text or "")
    return "passed", ""


def _pytest() -> list[str]:
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"]


if __name__ == "__main__":
    sys.exit(subprocess.run([*_pytest(), *sys.argv[1:]], env=environment(), check=False).returncode)
