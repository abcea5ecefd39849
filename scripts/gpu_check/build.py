"""Prepares and compiles the engines, as `engine-build` does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scripts.gpu_check.checks import Skip
from scripts.gpu_check.options import Engine, Options
from scripts.gpu_check.roofline import as_dict, read_network
from serve_app.manifest import MANIFEST_NAME, Manifest, Precision, read_manifest


def prepare(options: Options, precision: Precision) -> tuple[Engine, Mapping[str, Any]]:
    """The typed ONNX of `options.model`, made unless it is there.

    Raises:
        Skip: int8 without pictures to calibrate with.
        SetupError: it cannot be made.
    """
    manifest = _manifest(options, precision)
    engine = Engine(options.engines_dir / manifest.model / f"tensorrt-{precision}", manifest)
    onnx = engine.folder / manifest.artifact
    figures = manifest.verify
    return engine, {
        "engine": manifest.engine_name,
        "trained": manifest.trained,
        "onnx_bytes": onnx.stat().st_size,
        "top1_agreement": figures.top1_agreement if figures else None,
        "accuracy": figures.accuracy.model_dump(mode="json") if figures and figures.accuracy else None,
        "network": as_dict(read_network(onnx)),
    }


def _manifest(options: Options, precision: Precision) -> Manifest:
    from engine_build.zoo import ARCHITECTURES

    folder = options.engines_dir / options.model / f"tensorrt-{precision}"
    is_there = (folder / MANIFEST_NAME).is_file()
    if options.model not in ("auto", *ARCHITECTURES) or (is_there and precision == "int8" and not options.calibration):
        return read_manifest(folder)
    if precision == "int8" and options.calibration is None:
        raise Skip("int8 needs photographs to calibrate with; pass --calibration DIR")
    from engine_build.build import build  # torch takes seconds to import
    from engine_build.request import BuildRequest

    return build(
        BuildRequest(
            model=options.model,
            backend="tensorrt",
            precision=precision,
            engines_dir=options.engines_dir,
            weights_dir=options.weights_dir,
            untrained=options.untrained,
            calibration=options.calibration if precision == "int8" else None,
            max_batch=1,
        )
    )


def compile_plan(options: Options, engine: Engine) -> Mapping[str, Any]:
    """The plan for this machine's GPU.

    Raises:
        Skip: no GPU.
        SetupError: TensorRT refuses it.
    """
    if options.stand_in:
        raise Skip("compiling needs a GPU; the CPU runs the ONNX itself")
    from engine_build.tensorrt.compile import CompileOptions, compile_engine

    wanted = CompileOptions(max_batch=options.max_batch, opt_batch=options.opt_batch, force=options.force)
    record, path = compile_engine(engine.folder, wanted)
    return {
        "build_s": record.build_s,
        "plan_bytes": path.stat().st_size,
        "layer_types": dict(record.layer_types),
        "top1_agreement": record.top1_agreement,
        "max_logit_error": record.max_logit_error,
        "warnings": list(record.warnings),
        "record": record.model_dump(mode="json"),
    }
