"""ONNX -> plan, by TensorRT 11. Types are in the ONNX and TensorRT obeys them; it has no precision flags any more."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tensorrt as trt

from engine_build.errors import CompileFailed
from engine_build.progress import say
from engine_build.tensorrt.inspect import layer_types
from engine_build.tensorrt.monitor import BuildBar
from serve_app.plans import BuilderSettings, PlanKey
from serve_app.runtime.tensorrt.log import CollectedLog, collected_log


@dataclass(frozen=True, slots=True)
class Plan:
    """A compiled plan, and what TensorRT said of it."""

    content: bytes
    layer_types: dict[str, int]
    warnings: tuple[str, ...]


def compile_onnx(onnx: Path, key: PlanKey, timing_cache: Path) -> Plan:
    """Compiles `onnx` for this machine's GPU. Takes minutes; Ctrl-C stops it at its next step.

    Args:
        key: profile and builder settings are taken from it.
        timing_cache: what earlier builds on this machine measured, and the place for what this one does.

    Raises:
        CompileFailed: TensorRT refuses something; with the lines it logged.
    """
    log = collected_log()
    mark = log.mark()
    builder = trt.Builder(log)
    network = _parsed(builder, onnx, log)
    config = _config(builder, network, key, log)
    _load_timings(config, timing_cache)
    if not builder.is_network_supported(network, config):
        raise CompileFailed("TensorRT does not support this network on this GPU", log.errors_since(mark))
    content = _compiled(builder, network, config, log)
    _save_timings(config, timing_cache)
    return Plan(content, _inspected(content, log), tuple(log.lines_since(mark)))


def _parsed(builder: trt.Builder, onnx: Path, log: CollectedLog) -> trt.INetworkDefinition:
    mark = log.mark()
    network = builder.create_network(0)
    if network is None:
        raise CompileFailed("TensorRT makes no network", log.errors_since(mark))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        errors = [_described(parser.get_error(index)) for index in range(parser.num_errors)]
        raise CompileFailed(f"TensorRT does not take {onnx.name}: {'; '.join(errors)}", log.errors_since(mark))
    if network.num_inputs != 1 or network.num_outputs != 1:
        raise CompileFailed(
            f"{onnx.name} has {network.num_inputs} inputs and {network.num_outputs} outputs, not one each"
        )
    return network


def _described(error: trt.ParserError) -> str:
    return f"node {error.node()} {error.node_name()!r} ({error.node_operator()}): {error.desc()}"


def _config(
    builder: trt.Builder, network: trt.INetworkDefinition, key: PlanKey, log: CollectedLog
) -> trt.IBuilderConfig:
    config = builder.create_builder_config()
    _apply(config, key.builder)
    image = network.get_input(0)
    _, *sizes = tuple(image.shape)
    batches, mark = key.profile, log.mark()
    profile = builder.create_optimization_profile()
    try:
        profile.set_shape(
            image.name, (batches.min_batch, *sizes), (batches.opt_batch, *sizes), (batches.max_batch, *sizes)
        )
    except RuntimeError as error:
        raise CompileFailed(f"TensorRT does not take the profile {batches}: {error}", log.errors_since(mark)) from None
    if not profile or config.add_optimization_profile(profile) < 0:
        raise CompileFailed(f"TensorRT does not take the profile {batches}", log.errors_since(mark))
    return config


def _apply(config: trt.IBuilderConfig, settings: BuilderSettings) -> None:
    # On by default: what is called fp32 would then multiply with ten bits of mantissa.
    if settings.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * 2**20)
    config.builder_optimization_level = settings.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector names layers and nothing else


def _load_timings(config: trt.IBuilderConfig, path: Path) -> None:
    content = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        say(f"      the timing cache {path.name} is of another GPU or TensorRT and is not used")
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _save_timings(config: trt.IBuilderConfig, path: Path) -> None:
    cache = config.get_timing_cache()
    if cache is None:
        return
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(bytes(cache.serialize()))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _compiled(
    builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig, log: CollectedLog
) -> bytes:
    mark = log.mark()
    bar = BuildBar("compiling")
    config.progress_monitor = bar
    try:
        # In a thread: while TensorRT works in this one, Ctrl-C would wait until it is done.
        with ThreadPoolExecutor(1) as pool:
            try:
                plan = pool.submit(builder.build_serialized_network, network, config).result()
            except KeyboardInterrupt:
                bar.cancel()
                raise
    finally:
        bar.close()
    if plan is None:
        raise CompileFailed("TensorRT compiled nothing", log.errors_since(mark))
    return bytes(plan)


def _inspected(content: bytes, log: CollectedLog) -> dict[str, int]:
    mark = log.mark()
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise CompileFailed("TensorRT does not load what it has just compiled", log.errors_since(mark))
    inspector = engine.create_engine_inspector()
    return layer_types(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
