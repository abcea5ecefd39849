"""Builds what a configuration file names and is not there yet; does nothing, fast, where it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from engine_build.errors import BuildError
from engine_build.progress import say
from engine_build.request import BuildRequest
from engine_build.store import EngineId, EngineStore
from engine_build.tensorrt.compile import CompileOptions, tuned_batch
from engine_build.zoo import ARCHITECTURES, FLAGSHIP, PACKAGED
from serve_app.errors import ConfigError, EngineError
from serve_app.lint import load_config
from serve_app.manifest import Manifest
from serve_app.plans import Machine, find_plan
from serve_app.settings import Settings, parse_settings, per_model

Missing = tuple[BuildRequest, CompileOptions | None]
"""An engine to build, and how it is compiled if it is for a GPU."""


def missing_engines(config: Path, weights_dir: Path) -> list[Missing]:
    """What has to be built before the service can start with this file; says what is there already.

    Raises:
        ConfigError: not a Serve configuration file, or unknown keys in it.
        GpuMissing: the engine is for a GPU, and this machine has none.
        BuildError: engines are missing that cannot be built without more being known; says by which commands.
    """
    models = [model for settings in read_settings(config) for model in per_model(settings).values()]
    wanted = dict.fromkeys((_request(model, weights_dir), _plan(model)) for model in models)
    missing = [one for one in wanted if not _is_there(*one)]
    # All of them at once: whoever has to act should not learn of them one by one, with a build in between.
    not_there = [request for request, _ in missing if present_engine(request) is None]
    if problems := [problem for request in not_there if (problem := _cannot_build(request))]:
        raise BuildError("; ".join(dict.fromkeys(problems)))
    return missing


def present_engine(request: BuildRequest) -> Path | None:
    """The folder of the engine that the server would take, whatever it was built from; None where there is none."""
    store = EngineStore(request.engines_dir)
    present = _find_served(store, request.engine_id())
    return store.folder(EngineId.of(present)) if present else None


def read_settings(config: Path) -> list[Settings]:
    """The settings of every application in a Serve configuration file.

    Raises:
        ConfigError: it cannot be read, or is not one.
    """
    content = load_config(config)
    applications = content.get("applications")
    if not isinstance(applications, list) or not applications:
        raise ConfigError(f"configuration {config} lists no applications; see configs/local.yaml")
    return [_application_settings(config, application) for application in applications]


def _application_settings(config: Path, application: Any) -> Settings:
    args = (application.get("args") or {}) if isinstance(application, dict) else None
    if not isinstance(args, dict):
        raise ConfigError(f"configuration {config}: args of an application is not a mapping; see configs/local.yaml")
    try:
        return parse_settings(args)
    except ConfigError as error:
        raise ConfigError(f"configuration {config}: {error}") from None


def _request(settings: Settings, weights_dir: Path) -> BuildRequest:
    engine = settings.engine
    return BuildRequest(
        model=engine.model,
        backend=engine.backend,
        precision=engine.precision,
        engines_dir=engine.engines_dir,
        weights_dir=weights_dir,
        max_batch=settings.batching.max_batch_size,
        version=engine.version,
    )


def _plan(settings: Settings) -> CompileOptions | None:
    if settings.engine.backend != "tensorrt" or settings.runtime.device == "stand_in":
        return None
    most = settings.batching.max_batch_size
    return CompileOptions(max_batch=most, opt_batch=tuned_batch(None, most))


def _is_there(request: BuildRequest, plan: CompileOptions | None) -> bool:
    engine = request.engine_id().check_buildable()
    store = EngineStore(request.engines_dir)
    present = _find_served(store, engine)
    if plan is not None:
        from serve_app.runtime.tensorrt.machine import this_machine

        machine = this_machine()
        if present and not _has_plan(store.folder(EngineId.of(present)), present, machine, plan):
            return False
    if present:
        say(f"engine {present.engine_name} is ready in {request.engines_dir}")
        return True
    return False


def _has_plan(folder: Path, manifest: Manifest, machine: Machine, plan: CompileOptions) -> bool:
    try:
        _, record = find_plan(folder, manifest, machine, plan.max_batch)
    except EngineError:
        return False
    return record.key.profile.max_batch >= plan.max_batch


def _find_served(store: EngineStore, engine: EngineId) -> Manifest | None:
    """The engine the server would take, by the server's rule for `auto`: the first trained one of two."""
    if engine.model != "auto":
        return store.find(engine)
    candidates = (store.find(replace(engine, model=model)) for model in (FLAGSHIP, PACKAGED))
    return next((manifest for manifest in candidates if manifest and manifest.trained), None)


def _cannot_build(request: BuildRequest) -> str | None:
    """Why it takes a person to build this, and the command; None where it can be built as it is."""
    version = f" --version {request.version}" if request.version > 1 else ""
    command = f"engine-build build --backend {request.backend} --precision {request.precision}{version}"
    where = f"--engines-dir {request.engines_dir}"
    if request.model not in ("auto", *ARCHITECTURES):
        return (
            f"engine {request.engine_id()} is not built; build it with: {command} --checkpoint WEIGHTS.pt "
            f"--arch ARCHITECTURE --labels LABELS.txt --name {request.model} {where}"
        )
    if request.precision == "int8":
        return (
            f"engine {request.engine_id()} is not built, and int8 needs pictures to calibrate with; build it with: "
            f"{command} --model {request.model} --calibration DIR {where}"
        )
    return None
