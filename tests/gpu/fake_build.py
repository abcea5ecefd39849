"""The building half of the fake TensorRT: ONNX in, and a "plan" out, which is JSON that tells what was built."""

from __future__ import annotations

import json
import threading
import weakref
from typing import Any

from tests.gpu.fake_objects import Fake, Value, World, host_memory, recorded
from tests.gpu.fake_onnx import INetworkDefinition

MAGIC = b"fake TensorRT plan\n"
TIMINGS = b"fake timing cache\n"
_PHASES = (
    ("Building engine", None, 3),
    ("Selecting tactics", "Building engine", 4),
    ("Timing", "Selecting tactics", 2),
)


class IOptimizationProfile(Fake):
    """Shapes of the inputs."""

    @recorded
    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        dims, faults = self._s.world.module.Dims, self._s.world.faults
        shapes = [dims(tuple(one)) for one in (min, opt, max)]
        ordered = all(a <= b <= c for a, b, c in zip(*map(tuple, shapes), strict=True))
        if faults.profile_raises or not ordered:
            raise RuntimeError(f"Shape provided for {input} is inconsistent with other shapes")
        self._s.shapes[input] = shapes

    @recorded
    def get_shape(self, input: str) -> list[Any]:
        return list(self._s.shapes.get(input, []))

    def __bool__(self) -> bool:
        return bool(self._s.shapes)


class ITimingCache(Fake):
    """Holds a text."""

    @recorded
    def serialize(self) -> Any:
        return host_memory(self._s.world, TIMINGS + self._s.content)

    @recorded
    def combine(self, input_cache: Any, ignore_mismatch: bool) -> bool:
        self._s.content += input_cache._s.content
        return True

    @recorded
    def reset(self) -> bool:
        self._s.content = b""
        return True


class IBuilderConfig(Fake):
    """Settings of a build."""

    builder_optimization_level, avg_timing_iterations = Value(3, assignable=True), Value(1, assignable=True)
    max_num_tactics, max_aux_streams = Value(-1, assignable=True), Value(-1, assignable=True)
    profiling_verbosity, hardware_compatibility_level = Value(assignable=True), Value(assignable=True)

    @property
    def progress_monitor(self) -> Any:
        return self._s.monitor() if self._s.monitor else None

    @progress_monitor.setter
    def progress_monitor(self, monitor: Any) -> None:
        if monitor is not None and not isinstance(monitor, self._s.world.module.IProgressMonitor):
            raise TypeError(f"progress_monitor takes an IProgressMonitor, not {monitor!r}")
        self._s.world.journal.add(self._s.name, "progress_monitor=", (type(monitor).__name__,))
        # Weak: whoever sets it must keep it.
        self._s.monitor = weakref.ref(monitor) if monitor is not None else None

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._s.profiles)

    @recorded
    def set_flag(self, flag: Any) -> None:
        self._s.flags.add(flag)

    @recorded
    def clear_flag(self, flag: Any) -> None:
        self._s.flags.discard(flag)

    @recorded
    def get_flag(self, flag: Any) -> bool:
        return flag in self._s.flags

    @recorded
    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._s.pools[pool] = int(pool_size)

    @recorded
    def get_memory_pool_limit(self, pool: Any) -> int:
        return int(self._s.pools.get(pool, 2**33))

    @recorded
    def add_optimization_profile(self, profile: Any) -> int:
        world: World = self._s.world
        if world.injected(world.faults.profile_refused, self._s.logger, "add_optimization_profile") or not profile:
            return -1
        self._s.profiles.append(profile)
        return len(self._s.profiles) - 1

    @recorded
    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        content = bytes(serialized_timing_cache)
        return ITimingCache.made(self._s.world, content=content.removeprefix(TIMINGS), given=content)

    @recorded
    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        world: World = self._s.world
        foreign = bool(cache._s.given) and not cache._s.given.startswith(TIMINGS)
        fault = world.faults.timing_cache and cache._s.given
        if world.injected((fault or foreign) and not ignore_mismatch, self._s.logger, "set_timing_cache"):
            return False
        self._s.cache = cache
        return True

    @recorded
    def get_timing_cache(self) -> Any:
        return self._s.cache


class Builder(Fake):
    """Makes all the others, and the plan."""

    constructible = True
    max_threads = Value(1, assignable=True)

    @recorded
    def create_network(self, flags: int = 0) -> Any:
        world: World = self._s.world
        if world.injected(world.faults.network, self._s.logger, "create_network"):
            return None
        return INetworkDefinition.made(world, builder=self, parsers=[], inputs=[], outputs=[], layers=[])

    @recorded
    def create_builder_config(self) -> Any:
        flags = {self._s.world.module.BuilderFlag.TF32}
        state: dict[str, Any] = {"flags": flags, "pools": {}, "profiles": [], "cache": None, "monitor": None}
        config = IBuilderConfig.made(self._s.world, builder=self, logger=self._s.logger, **state)
        module = self._s.world.module
        config._s.values["profiling_verbosity"] = module.ProfilingVerbosity.LAYER_NAMES_ONLY
        config._s.values["hardware_compatibility_level"] = module.HardwareCompatibilityLevel.NONE
        return config

    @recorded
    def create_optimization_profile(self) -> Any:
        return IOptimizationProfile.made(self._s.world, shapes={})

    @recorded
    def is_network_supported(self, network: Any, config: Any) -> bool:
        world: World = self._s.world
        return not world.injected(world.faults.network_unsupported, self._s.logger, "is_network_supported")

    @recorded
    def build_serialized_network(self, network: Any, config: Any) -> Any:
        world: World = self._s.world
        if reason := self._refusal(network, config):
            world.failed(self._s.logger, "build_serialized_network", reason)
            return None
        if not self._reported(config):
            return None
        if config._s.cache is not None:
            config._s.cache._s.content += b"measured\n"
        return host_memory(world, MAGIC + json.dumps(_plan(network, config)).encode())

    @recorded
    def reset(self) -> None: ...

    def _refusal(self, network: Any, config: Any) -> str:
        dynamic = [one.name for one in network._s.inputs if -1 in tuple(one.shape)]
        profiled = {name for profile in config._s.profiles for name in profile._s.shapes}
        if self._s.world.faults.build:
            return str(self._s.world.faults.line.format("build_serialized_network"))
        if missing := [name for name in dynamic if name not in profiled]:
            return f"dynamic input {missing[0]} has no optimization profile"
        return "" if network._s.outputs else "the network has no outputs"

    def _reported(self, config: Any) -> bool:
        """Runs the progress monitor in another thread, as TensorRT does; False where it stopped the build."""
        if config._s.monitor is None:
            return True
        monitor, answers = config._s.monitor(), [False]
        if monitor is None:
            self._s.world.violations.append("the progress monitor was not kept alive")
            return False
        thread = threading.Thread(target=lambda: answers.append(_phases(monitor)))
        thread.start()
        thread.join()
        if not answers[-1]:
            self._s.world.failed(self._s.logger, "build", "the build was cancelled by the progress monitor")
        return answers[-1]


def _phases(monitor: Any) -> bool:
    """Phases within phases; the innermost ends before all its steps came."""
    try:
        for name, parent, steps in _PHASES:
            monitor.phase_start(name, parent, steps)
        for name, _, steps in reversed(_PHASES):
            for step in range(steps - (name == "Timing")):
                if monitor.step_complete(name, step) is not True:
                    return False
            monitor.phase_finish(name)
    except Exception:
        return False
    return True


def _plan(network: Any, config: Any) -> dict[str, Any]:
    """What a plan tells of itself; read again by the running half."""
    inputs, outputs = [
        [{"name": one.name, "shape": list(one.shape), "dtype": one.dtype.name} for one in tensors]
        for tensors in (network._s.inputs, network._s.outputs)
    ]
    profiles = [
        {name: [list(shape) for shape in shapes] for name, shapes in profile._s.shapes.items()}
        for profile in config._s.profiles
    ]
    detailed = config.profiling_verbosity == config._s.world.module.ProfilingVerbosity.DETAILED
    return {
        "version": config._s.world.version,
        "inputs": inputs,
        "outputs": outputs,
        "profiles": profiles,
        "layers": network._s.layers,
        "detailed": detailed,
        "flags": sorted(flag.name for flag in config._s.flags),
    }
