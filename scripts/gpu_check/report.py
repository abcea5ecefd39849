"""One report: Markdown for people, JSON with everything that was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.gpu_check.checks import Data, Outcome

REHEARSAL = "Rehearsal of the GPU check: a CPU stood in for the GPU, and no figure here is about a GPU"
Cells = Sequence[object]


def write(folder: Path, outcomes: Sequence[Outcome], about: Mapping[str, Any]) -> Path:
    """Writes `report.json` and `report.md` into `folder`; returns the path of the second.

    Args:
        about: `rehearsal`, `interrupted`, `not_reached` (names of steps), `model`, `command`, `started_utc`, `seconds`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    raw = {"about": dict(about), "outcomes": [asdict(outcome) for outcome in outcomes]}
    (folder / "report.json").write_text(json.dumps(raw, indent=1, default=str) + "\n", encoding="utf-8")
    path = folder / "report.md"
    path.write_text(page(outcomes, about), encoding="utf-8")
    return path


def page(outcomes: Sequence[Outcome], about: Mapping[str, Any]) -> str:
    """The Markdown."""
    sections = [
        _head(outcomes, about),
        _steps(outcomes),
        _not_run(outcomes, about),
        _failures(outcomes),
        _machine(outcomes),
        _section("Engines", _engines(outcomes)),
        _section("Answers", _answers(outcomes)),
        *(_speed(one) for one in outcomes if one.step == "bench" and one.data.get("rows")),
        *(_service(one) for one in outcomes if one.step == "serve" and "load" in one.data),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def summary(outcomes: Iterable[Outcome]) -> str:
    """How many of each."""
    statuses = [outcome.status for outcome in outcomes]
    return ", ".join(f"{statuses.count(status)} {status}" for status in ("passed", "failed", "skipped"))


def table(titles: Sequence[str], rows: Iterable[Cells]) -> str:
    """Markdown; empty where there are no rows."""
    lines = [f"| {' | '.join(_cell(value) for value in row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", *lines]) if lines else ""


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return " ".join(text.replace("|", "\\|").split())


def _number(value: float | None, digits: int = 3) -> str:
    """Three significant digits; thousands as they are."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.{digits}g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _data(outcomes: Iterable[Outcome], step: str, name: str) -> Data:
    return next((one.data for one in outcomes if (one.step, one.name) == (step, name)), {})


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _head(outcomes: Sequence[Outcome], about: Mapping[str, Any]) -> str:
    gpu = _data(outcomes, "machine", "GPU").get("gpu", "unknown GPU")
    title = REHEARSAL if about["rehearsal"] else f"GPU check: {gpu}"
    lines = [
        f"# {title}",
        "",
        f"{about['model']}, {about['started_utc']}, {about['seconds']:.0f} s: {summary(outcomes)}.",
    ]
    if about["interrupted"]:
        lines += ["", "**It was interrupted; what came before is complete.**"]
    return "\n".join([*lines, "", f"    {about['command']}"])


def _steps(outcomes: Sequence[Outcome]) -> str:
    rows = [(one.step, one.name, one.status, f"{one.seconds:.1f}", one.reason) for one in outcomes]
    return _section("Steps", table(["step", "what", "result", "s", "reason"], rows))


def _not_run(outcomes: Sequence[Outcome], about: Mapping[str, Any]) -> str:
    lines = [f"- {one.step}, {one.name}: {one.reason}" for one in outcomes if one.status == "skipped"]
    lines += [f"- {name}: not reached" for name in about["not_reached"]]
    return _section("Not run", "\n".join(lines) or "Nothing was left out.")


def _failures(outcomes: Sequence[Outcome]) -> str:
    parts = []
    for one in outcomes:
        if one.status == "failed":
            trace = one.data.get("traceback")
            parts.append(f"### {one.step}, {one.name}\n\n{one.reason}" + (f"\n\n```\n{trace}```" if trace else ""))
    return _section("Failures", "\n\n".join(parts))


def _machine(outcomes: Sequence[Outcome]) -> str:
    found = {**_data(outcomes, "machine", "GPU"), **_data(outcomes, "machine", "software")}
    found |= {f"measured {name}": value for name, value in _data(outcomes, "machine", "GPU memory").items()}
    lines = []
    for name, value in found.items():
        if name == "peak":  # told with the floor
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {inner}" for key, inner in value.items() if inner not in (None, ""))
        lines.append(f"- {name}: {_number(value) if isinstance(value, float) else value}")
    return _section("Machine", "\n".join(lines))


def _by_precision(outcomes: Iterable[Outcome], step: str) -> dict[str, Data]:
    return {one.name.split()[0]: one.data for one in outcomes if one.step == step and one.data}


def _engines(outcomes: Sequence[Outcome]) -> str:
    prepared, compiled = _by_precision(outcomes, "prepare"), _by_precision(outcomes, "compile")
    rows = []
    for precision, ready in prepared.items():
        if "network" not in ready:
            continue
        plan, macs = compiled.get(precision, {}), ready["network"]["macs_by_precision"]
        rows.append(
            (
                precision,
                f"{ready['onnx_bytes'] / 1e6:.1f}",
                f"{plan['plan_bytes'] / 1e6:.1f}" if "plan_bytes" in plan else "",
                plan.get("build_s"),
                ", ".join(f"{count} {kind}" for kind, count in plan.get("layer_types", {}).items()),
                ", ".join(f"{count / 1e9:.3f} G in {kind}" for kind, count in macs.items()),
                "" if ready["trained"] else "untrained: answers mean nothing",
            )
        )
    titles = ["precision", "ONNX MB", "plan MB", "compile s", "layers of the plan", "multiply-adds a picture", ""]
    return table(titles, rows)


def _answers(outcomes: Sequence[Outcome]) -> str:
    rows = [
        (
            precision,
            data["pictures"],
            _percent(data["same_first_class"]),
            _number(data["mean_error"]),
            _number(data["max_error"]),
            _number(data["scale"]),
            _percent(data.get("top1")),
            _percent(data.get("top1_on_cpu")),
            data["labelled"],
        )
        for precision, data in _by_precision(
            [one for one in outcomes if one.name.endswith("answers")], "verify"
        ).items()
        if "same_first_class" in data
    ]
    titles = ["precision", "pictures", "same first class", "mean error", "max error", "largest logit"]
    body = table([*titles, "top-1", "top-1 on CPU", "labelled"], rows)
    return (
        f"The same typed ONNX, run by onnxruntime on the CPU, is what they are held against.\n\n{body}" if body else ""
    )


_Column = tuple[str, Callable[[Mapping[str, Any]], str]]
_COLUMNS: tuple[_Column, ...] = (
    ("batch", lambda row: str(row["batch"])),
    ("runs as", lambda row: str(row["ran_as"])),
    ("copy in ms", lambda row: _number(row["copy_in_ms"])),
    ("run ms", lambda row: _number(row["run_ms"])),
    ("copy out ms", lambda row: _number(row["copy_out_ms"])),
    ("whole call ms", lambda row: _number(row["call_ms"])),
    ("run ms, graph", lambda row: _number(row["graph_run_ms"])),
    ("1 on GPU /s", lambda row: _number(row["one_per_s"])),
    ("2 on GPU /s", lambda row: _number(row["two_per_s"])),
    ("2, graphs /s", lambda row: _number(row["graphs_per_s"])),
    ("copy in GB/s", lambda row: _number(row["copy_in_gb_s"])),
    ("floor ms", lambda row: _number(row["floor_ms"])),
    ("bound by", lambda row: row["bound"] or ""),
    ("of the floor", lambda row: _percent(row["share"])),
    ("layer by layer ms", lambda row: _number(row["layered_ms"])),
)


def _speed(outcome: Outcome) -> str:
    rows, peak = outcome.data["rows"], outcome.data["peak"]
    body = table([title for title, _ in _COLUMNS], [[cell(row) for _, cell in _COLUMNS] for row in rows])
    padded = [str(row["batch"]) for row in rows if row["ran_as"] != row["batch"]]
    notes = [
        f"Pictures per second ({outcome.data['seconds']:g} s each) are of two callers that never pause; times are "
        f"medians of {outcome.data['runs']} lone runs, by the GPU's clock except the whole call.",
        f"Padded to a larger batch, which is faster: {', '.join(padded)}." if padded else "No batch size was padded.",
        _about_floor(peak),
    ]
    return _section(f"Speed, {outcome.name}", "\n\n".join([body, *notes]))


def _about_floor(peak: Mapping[str, Any] | None) -> str:
    if peak is None:
        return "There is no floor: this device is not in scripts/gpu_check/gpus.py."
    note = f" ({peak['note']})" if peak["note"] else ""
    rates = " / ".join("unknown" if peak[one] is None else str(peak[one]) for one in ("fp32", "fp16", "int8"))
    return (
        f"The floor is the network's arithmetic at {rates} dense TFLOPS in fp32 / fp16 / int8, or its weights, "
        f"pictures and answers at {peak['memory_gb_s']} GB/s, whichever takes longer{note}; by {peak['source']}. Layer "
        "by layer, with each layer's activations through the memory, is what an engine takes that keeps nothing in its "
        "cache."
    )


def _service(outcome: Outcome) -> str:
    data = outcome.data
    rows = [
        (
            one["connections"],
            _number(one["pictures_per_s"]),
            _number(one["p50_ms"]),
            _number(one["p99_ms"]),
            one["shed"] + sum(one["errors"].values()),
        )
        for one in data["load"]
    ]
    text = (
        f"configs/prod.yaml, ready after {data['start_s']} s. {data['photographs']} photographs: "
        f"{data['same_first_class']:.1%} with the CPU's first class, scores differ by at most "
        f"{data['max_score_difference']:.3g}. Clients run on this machine and take cores from the service."
    )
    body = table(["clients", "pictures/s", "p50 ms", "p99 ms", "failed"], rows)
    return _section(f"Service, {outcome.name}", f"{text}\n\n{body}")
