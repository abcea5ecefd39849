"""What the dashboard shows of replicas, versions, GPUs and Ray Serve itself."""

from __future__ import annotations

from scripts.monitoring.promql import MODEL, STAGE, mean, of_stage, padding, possible, quantile, rate
from scripts.monitoring.shown import APPROXIMATE, Panel, Query, Row

NO_GPU = "only replicas with a GPU report it"

SCALING = Row(
    "Scaling",
    (
        Panel(
            "Replicas",
            "Asked for by the policy, and serving. Apart for longer than a start takes: the cluster is full.",
            "short",
            (
                Query(of_stage("desired_replicas"), "{{deployment}} desired"),
                Query(of_stage("running_replicas"), "{{deployment}} running"),
            ),
        ),
        Panel(
            "Backlog",
            "Pictures that wait or are in work, by stage.",
            "short",
            (Query(of_stage("backlog_pictures"), "{{deployment}}"),),
        ),
        Panel(
            "Time to work the backlog off",
            "Backlog over what the replicas that serve can do.",
            "s",
            (Query(f"{of_stage('backlog_pictures')} / ({possible()})", "{{deployment}}"),),
        ),
        Panel(
            "Offered and possible",
            "Pictures offered per second, and what the replicas that serve can do.",
            "cps",
            (
                Query(of_stage("arrivals_per_s"), "{{deployment}} offered"),
                Query(possible(), "{{deployment}} possible"),
            ),
            width=12,
        ),
        Panel(
            "Start-up",
            "Seconds from asking for a replica until it serves: how far ahead the policy has to look.",
            "s",
            (Query(of_stage("start_up_s"), "{{deployment}}"),),
            width=12,
        ),
    ),
)

VERSIONS = Row(
    "Engine versions",
    (
        Panel(
            "Version served",
            "Lowest and highest of a model's replicas; apart only while a new version is taken in.",
            "short",
            (
                Query(f"min by (model) (ray_image_serve_model_version{{{MODEL}}})", "{{model}} lowest"),
                Query(f"max by (model) (ray_image_serve_model_version{{{MODEL}}})", "{{model}} highest"),
            ),
            width=12,
        ),
        Panel(
            "Versions refused",
            "Engine versions that were not taken in, since the replicas started; the one before serves on.",
            "short",
            (
                Query(
                    f"sum by (model) (ray_image_serve_version_refused_total{{{MODEL}}})",
                    "{{model}}",
                    "no version was refused",
                ),
            ),
            width=12,
        ),
    ),
)

GPU = Row(
    "GPU",
    (
        Panel(
            "Time of a batch on the GPU",
            f"Mean of each step: copy in, run, copy out. {APPROXIMATE}",
            "ms",
            (Query(mean("ray_image_serve_gpu_ms", MODEL, "step"), "{{step}}", NO_GPU),),
            stacked=True,
        ),
        Panel(
            "Padding",
            "Share of the pictures on the GPU that only fill a batch up to a size that runs fast.",
            "percentunit",
            (
                Query(
                    padding(),
                    "{{model}}",
                    NO_GPU,
                ),
            ),
        ),
        Panel(
            "GPU memory",
            "Buffers and engines of this service's replicas, and the least that is free on any GPU.",
            "bytes",
            (
                Query(
                    f'sum by (kind) (ray_image_serve_gpu_memory_bytes{{{MODEL},kind=~"buffers|engine"}})',
                    "{{kind}}",
                    NO_GPU,
                ),
                Query(f'min(ray_image_serve_gpu_memory_bytes{{{MODEL},kind="free"}})', "least free", NO_GPU),
            ),
        ),
        Panel(
            "GPU utilisation",
            "Of each GPU, from Ray's nodes: needs the job `ray` of prometheus.yml, and Ray's dashboard.",
            "percent",
            (
                Query(
                    "avg by (instance, GpuIndex, GpuDeviceName) (ray_node_gpus_utilization)",
                    "{{instance}} {{GpuIndex}} {{GpuDeviceName}}",
                    "only nodes with a GPU report it, and `image-serve start` runs without Ray's dashboard",
                ),
            ),
            width=24,
        ),
    ),
    folded=True,
)

RAY_SERVE = Row(
    "Ray Serve's own",
    (
        Panel(
            "HTTP answers by status",
            "Per second, all routes, Serve's health checks left out.",
            "cps",
            (
                Query(
                    rate("ray_serve_num_http_requests_total", f'{STAGE},route!="/-/healthz"', "status_code"),
                    "{{status_code}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Requests in replicas",
            "Being processed, by deployment.",
            "short",
            (
                Query(
                    f"sum by (deployment) (ray_serve_replica_processing_queries{{{STAGE}}})",
                    "{{deployment}}",
                ),
            ),
        ),
        Panel(
            "Calls between stages",
            "Per second, by the deployment called; a call to a Classifier carries a chunk of pictures.",
            "cps",
            (
                Query(
                    rate("ray_serve_deployment_request_counter_total", STAGE, "deployment"),
                    "{{deployment}}",
                ),
            ),
        ),
        Panel(
            "Start-up of replicas",
            "Mean by Serve's own clock, since Ray started.",
            "ms",
            (
                Query(
                    f"sum by (deployment) (ray_serve_replica_startup_latency_ms_sum{{{STAGE}}}) /"
                    f" sum by (deployment) (ray_serve_replica_startup_latency_ms_count{{{STAGE}}})",
                    "{{deployment}}",
                ),
            ),
        ),
        Panel(
            "Failed health checks",
            "Of replicas, since Ray started; each is followed by a new replica.",
            "short",
            (
                Query(
                    f"sum by (deployment) (ray_serve_health_check_failures_total{{{STAGE}}})",
                    "{{deployment}}",
                    "no health check failed",
                ),
            ),
        ),
        Panel(
            "Event loops",
            "p99 of how late a replica's event loop comes back; above 100 ms it is blocked, or the CPUs are full.",
            "ms",
            (
                Query(
                    quantile(0.99, "ray_serve_event_loop_scheduling_latency_ms", STAGE, "deployment"),
                    "{{deployment}}",
                ),
            ),
        ),
    ),
    folded=True,
)
