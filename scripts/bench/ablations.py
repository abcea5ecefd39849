"""Our own switches, each set to what it is not by default."""

from __future__ import annotations

from collections.abc import Callable

from scripts.bench.contenders import Ours
from scripts.local_service import BIN

Variant = Callable[[str], Ours]


def engine_args(engine: str, preprocess: str = "fast") -> dict[str, dict[str, object]]:
    """`args` that serve `engine` (MODEL/BACKEND-PRECISION)."""
    model, variant = engine.split("/")
    backend, precision = variant.split("-")
    return {
        "engine": {"model": model, "backend": backend, "precision": precision},
        "preprocess": {"mode": preprocess},
    }


def _args(name: str, describe: str, **sections: dict[str, object]) -> Variant:
    def make(engine: str) -> Ours:
        args = engine_args(engine)
        return Ours(
            name, describe, args={key: {**args.get(key, {}), **value} for key, value in {**args, **sections}.items()}
        )

    return make


def _environment(name: str, describe: str, **env: str) -> Variant:
    return lambda engine: Ours(name, describe, args=engine_args(engine), env=env)


def _precision(precision: str) -> Variant:
    return lambda engine: Ours(
        precision, f"{precision} engine", args=engine_args(f"{engine.split('/')[0]}/openvino-{precision}")
    )


def _split(name: str, describe: str, *, in_flight: int = 2, **env: str) -> Variant:
    """Two stages of one CPU each; max_ongoing_requests and limits as in configs/cpu.yaml, without its autoscaling."""

    def make(engine: str) -> Ours:
        fixed = {"autoscaling_config": None, "num_replicas": 1}
        args = engine_args(engine) | {"batching": {"max_in_flight": in_flight}}
        return Ours(name, describe, "cpu", args, {"Preprocessor": fixed, "Classifier": fixed}, env)

    return make


def _hop_per_picture(engine: str) -> Ours:
    one = {"max_batch_size": 16, "max_in_flight": 32}
    fixed = {"autoscaling_config": None, "num_replicas": 1}
    args = engine_args(engine) | {"batching": one}
    return Ours(
        "split, a hop per picture",
        "32 calls in flight: pictures leave one by one and are merged at the classifier",
        "cpu",
        args,
        {"Preprocessor": fixed, "Classifier": {**fixed, "max_ongoing_requests": 64}},
    )


def _stock_proxy(engine: str) -> Ours:
    """`serve run` itself: nothing sets the fast ingress up."""
    command, env = [str(BIN / "serve"), "run"], {"RAY_ADDRESS": "local"}
    return Ours("stock proxy", "serve run: Ray's Python proxy", args=engine_args(engine), env=env, command=command)


def _one_process(engine: str) -> Ours:
    both = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 2}}
    return Ours(
        "one replica of 2 CPUs",
        "one process, two threads with an engine each",
        "local",
        engine_args(engine),
        {"Preprocessor": both},
    )


VARIANTS: tuple[Variant, ...] = (
    _stock_proxy,
    _environment("no throughput mode", "HAProxy only", RAY_SERVE_THROUGHPUT_OPTIMIZED="0"),
    _environment("ingress metrics by HAProxy", "a log line per request, parsed", RAY_SERVE_HAPROXY_METRICS_ENABLED="1"),
    _environment("Ray's niceness 15", "Ray's own default for workers", RAY_worker_niceness="15"),
    _environment("HAProxy, 4 threads", "Ray's default", RAY_SERVE_HAPROXY_NBTHREAD="4"),
    _args("exact", "torchvision's transforms bit for bit", preprocess={"mode": "exact"}),
    _precision("fp32"),
    _args(
        "fp32 in bf16", "where the CPU has no bf16 it is emulated or refused", runtime={"inference_precision": "bf16"}
    ),
    _args("batches of 1", "no batching", batching={"max_batch_size": 1}),
    _args("batches of 4", "at most", batching={"max_batch_size": 4}),
    _args("batches of 32", "at most", batching={"max_batch_size": 32}),
    _one_process,
    _split("split", "two stages, chunks of what gathered, 2 in flight, gRPC"),
    _split("split, 1 in flight", "a chunk leaves when the last one is answered", in_flight=1),
    _split("split, by reference", "chunks through shared memory instead of gRPC", RAY_SERVE_USE_GRPC_BY_DEFAULT="0"),
    _hop_per_picture,
)


def all_names() -> list[str]:
    """What `--only` takes."""
    return [make("m/openvino-int8").name for make in VARIANTS]
