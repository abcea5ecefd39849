"""Our use of TensorRT 11.4 against its genuine Python binding, on a machine that has no GPU."""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

import pytest

from tests.gpu.binding import needs_binding
from tests.gpu.signatures import Binding
from tests.gpu.typing_stubs import type_errors
from tests.gpu.usage import imports_tensorrt, problems, usage

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    path
    for folder in ("serve_app", "engine_build", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if imports_tensorrt(path.read_text(encoding="utf-8"))
]
SAMPLE = """
import tensorrt as trt

class Bar(trt.IProgressMonitor):
    def __init__(self):
        trt.IProgressMonitor.__init__(self)
    def phase_start(self, phase_name, parent_phase, num_steps): ...
    def step_complete(self, phase_name, step): return True
    def phase_finish(self, phase_name): ...

class Engine:
    context: trt.IExecutionContext

    def __init__(self, log: trt.ILogger, plan: bytes) -> None:
        self.runtime = trt.Runtime(log)
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        self.context = self.engine.create_execution_context(strategy=trt.ExecutionContextAllocationStrategy.STATIC)

    def run(self, stream: int) -> bool:
        return self.context.execute_async_v3(stream_handle=stream)

def network(builder: "trt.Builder") -> trt.INetworkDefinition:
    return builder.create_network()

def built(builder: trt.Builder, profile: trt.IOptimizationProfile | None) -> None:
    made = network(builder)
    config = builder.create_builder_config()
    config.max_aux_streams = 0
    config.set_flag(trt.BuilderFlag.STRICT_NANS)
    names = [made.get_output(i).name for i in range(made.num_outputs)]
    least, _, most = profile.get_shape(names[0])
    least.MAX_DIMS
    print(getattr(trt, "float16"), trt.float16.itemsize, most.MAX_DIMS)
"""
MISTAKES = {
    "a class": ("trt.Runtime(", "trt.RunTime("),
    "a value": ("trt.float16", "trt.float17"),
    "getattr": ('"float16"', '"float17"'),
    "an enum member": ("STRICT_NANS", "FP16"),
    "an enum": ("trt.BuilderFlag", "trt.BuilderFlags"),
    "an inferred method": (".deserialize_cuda_engine", ".deserialise_cuda_engine"),
    "a method of an attribute": (".execute_async_v3", ".execute_async_v2"),
    "a keyword": ("stream_handle=", "stream="),
    "a constructor's arguments": ("trt.Runtime(log)", "trt.Runtime(log, plan)"),
    "a keyword that is defaulted": ("(strategy=", "(stategy="),
    "too few arguments": ("get_output(i)", "get_output()"),
    "in a comprehension": ("get_output(i).name", "get_output(i).nmae"),
    "through a quoted annotation": ("builder.create_network", "builder.create_net"),
    "in a quoted annotation": ('"trt.Builder"', '"trt.Bilder"'),
    "through a local function": ("made.num_outputs", "made.num_output"),
    "an optional parameter": ("profile.get_shape", "profile.get_shapes"),
    "an element": ("most.MAX_DIMS", "most.MAX_DIM"),
    "an assignment": ("max_aux_streams", "max_aux_stream"),
    "an assignment to what is read-only": ("config.max_aux_streams", "config.num_optimization_profiles"),
    "an attribute of a property": (".itemsize", ".items"),
    "a hook": ("def phase_finish", "def phase_end"),
    "a hook's parameter": ("phase_name, step)", "phase, step)"),
    "the base's constructor": ("trt.IProgressMonitor.__init__(self)", "pass"),
    "a base's constructor's arguments": ("IProgressMonitor.__init__(self)", "IProgressMonitor.__init__(self, 1)"),
    "an interface that cannot be made": ("builder.create_network()", "trt.INetworkDefinition()"),
    "a context manager": ("config = builder.create_builder_config()", "with builder as config: pass"),
    "a name imported by itself": ("import tensorrt as trt", "import tensorrt as trt\nfrom tensorrt import Logger"),
}


@lru_cache(maxsize=1)
def binding() -> Binding:
    return Binding(needs_binding())


def test_a_sample_that_is_right_has_no_problems() -> None:
    assert problems(SAMPLE, binding()) == []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_sample_is_found_in_its_line(mistake: str) -> None:
    right, wrong = MISTAKES[mistake]
    assert right in SAMPLE
    found = problems(SAMPLE.replace(right, wrong), binding())
    line = SAMPLE[: SAMPLE.index(right)].count("\n") + 1
    assert found
    assert any(abs(int(text.split()[1].rstrip(":")) - line) <= 5 for text in found), found


def test_our_sources_that_use_tensorrt_are_found() -> None:
    assert {path.parent.parent.name for path in SOURCES} >= {"runtime", "engine_build"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_what_we_use_exists_in_the_binding(path: Path) -> None:
    assert problems(path.read_text(encoding="utf-8"), binding()) == []


def renamed(source: str) -> list[tuple[str, str]]:
    """`source` with one name of TensorRT's misspelt, once for each name: the name, and the source.

    Names are taken by how they look, not by what the check makes of them: what it does not see shows.
    """
    tree = ast.parse(source)
    telling = {name for one in binding().classes.values() for name in one.names() if "_" in name or name.isupper()}
    seen = {id(node) for node in usage(source, binding()).checked}
    names = telling | set(binding().aliases) | {"__version__"}
    found = {
        node.attr: node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and (node.attr in names or id(node) in seen)
    }
    return [(name, _misspelt(source, node)) for name, node in sorted(found.items())]


def _misspelt(source: str, node: ast.Attribute) -> str:
    lines = source.splitlines(keepends=True)
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    line, end = lines[node.end_lineno - 1].encode(), node.end_col_offset
    lines[node.end_lineno - 1] = (line[:end] + b"_x" + line[end:]).decode()
    return "".join(lines)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_each_name_of_ours_when_it_is_misspelt_is_a_problem(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    mutants = renamed(source)
    assert mutants
    assert [name for name, mutant in mutants if not problems(mutant, binding())] == []


def test_at_least_five_calls_of_ours_were_misspelt() -> None:
    methods = {name for one in binding().classes.values() for name in one.methods}
    names = {name for path in SOURCES for name, _ in renamed(path.read_text(encoding="utf-8"))}
    assert len(names & methods) >= 5


TYPED = """
from pathlib import Path

import tensorrt as trt


class Bar(trt.IProgressMonitor):
    def __init__(self) -> None:
        trt.IProgressMonitor.__init__(self)

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...
    def step_complete(self, phase_name: str, step: int) -> bool:
        return True
    def phase_finish(self, phase_name: str) -> None: ...


def shape(builder: trt.Builder, plan: bytes, cache: Path) -> tuple[int, ...]:
    network = builder.create_network(0)
    config = builder.create_builder_config()
    config.progress_monitor = Bar()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 2**20)
    profile = builder.create_optimization_profile()
    profile.set_shape("input", (1, 3), (2, 3), (4, 3))
    engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(plan)
    if engine is None or trt.__version__ < "11":
        raise ValueError(trt.nptype(trt.DataType.HALF))
    cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    if not builder.is_network_supported(network, config):
        raise ValueError(trt.OnnxParser(network, trt.Logger()).get_error(0).node_name().strip())
    return tuple(engine.get_tensor_shape(engine.get_tensor_name(0)))
"""
TYPE_ERRORS = {
    "a misspelt method": ("engine.get_tensor_shape", "engine.get_tensor_shapes"),
    "an address as text": ("get_tensor_name(0)", 'get_tensor_name("0")'),
    "an enum in another's place": ("trt.MemoryPoolType.WORKSPACE", "trt.BuilderFlag.TF32"),
    "a removed flag": ("trt.DataType.HALF", "trt.BuilderFlag.FP16"),
    "a failure that is not looked at": ("engine is None or ", ""),
    "a number as text": ("node_name().strip", "node().strip"),
    "another class": ("(network, config)", "(config, network)"),
    "a hook's answer": ("step: int) -> bool", "step: int) -> str"),
}


@pytest.fixture(scope="module")
def stubs() -> None:
    needs_binding()
    pytest.importorskip("pybind11_stubgen", reason="pip install pybind11-stubgen")


@pytest.fixture(scope="module")
def errors_of_samples(stubs: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What mypy says of the sample, and of it with each mistake; all in one run."""
    folder, sources = tmp_path_factory.mktemp("samples"), {"none": TYPED}
    for mistake, (right, wrong) in TYPE_ERRORS.items():
        assert right in TYPED
        sources[mistake] = TYPED.replace(right, wrong)
    paths = {name: folder / f"sample{number}.py" for number, name in enumerate(sources)}
    for name, path in paths.items():
        path.write_text(sources[name], encoding="utf-8")
    errors = type_errors(list(paths.values()))
    return {name: [one for one in errors if path.name in one] for name, path in paths.items()}


@pytest.mark.usefixtures("stubs")
def test_our_sources_fit_stubs_made_from_the_binding() -> None:
    assert type_errors(SOURCES) == []


@pytest.mark.usefixtures("stubs")
def test_a_misspelt_name_in_each_of_our_sources_does_not_fit_them() -> None:
    mutants = {path: renamed(path.read_text(encoding="utf-8"))[-1] for path in SOURCES}
    errors = type_errors(SOURCES, changed={path: source for path, (_, source) in mutants.items()})
    unseen = [
        path.name
        for path, (name, _) in mutants.items()
        if not any(path.name in one and f"{name}_x" in one for one in errors)
    ]
    assert unseen == []


def test_a_sample_fits_them(errors_of_samples: dict[str, list[str]]) -> None:
    assert errors_of_samples["none"] == []


@pytest.mark.parametrize("mistake", TYPE_ERRORS)
def test_a_mistake_of_type_in_the_sample_does_not(mistake: str, errors_of_samples: dict[str, list[str]]) -> None:
    assert errors_of_samples[mistake] != []
