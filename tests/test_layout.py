"""The house: which part may import which, and what importing the package must not do."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("kernels", "server", "training")
MAY_IMPORT = {
    "kernels": set(),
    "core": {"kernels"},
    "server": {"core", "kernels"},
    "training": {"core", "kernels"},
}
# What a part may import from outside, where that is a promise.
ONLY_OUTSIDE = {"kernels": {"torch", "triton"}}
# The command joins the parts; `generate` and the command-line tools are called by it alone.
JOINS = {ROOT / "rlvr_decode" / "__main__.py"}


def sources():
    for path in sorted((ROOT / "rlvr_decode").rglob("*.py")):
        if path not in JOINS:
            yield "core", path
    for part in PARTS:
        for path in sorted((ROOT / part).rglob("*.py")):
            yield part, path


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(module):
    names = module.split(".")
    return names[1] if len(names) > 1 and names[1] in PARTS else "core"


@pytest.mark.parametrize(
    "part, path", [pytest.param(*s, id=str(s[1].relative_to(ROOT))) for s in sources()]
)
def test_imports_point_one_way(part, path):
    ours = {part_of(name) for name in imports_of(path) if name.split(".")[0] == "rlvr_decode"}
    assert ours - {part} <= MAY_IMPORT[part]
    if part in ONLY_OUTSIDE:
        outside = {name.split(".")[0] for name in imports_of(path)} - {"rlvr_decode"}
        assert outside - set(sys.stdlib_module_names) <= ONLY_OUTSIDE[part]


@pytest.mark.parametrize("folder", [*PARTS, "benchmarks", "tests"])
def test_top_level_folders_shadow_no_package(folder):
    # With an __init__.py, `kernels/` in the working directory would hide Hugging Face's `kernels`.
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("part", PARTS)
def test_the_package_links_to_its_parts(part):
    assert (ROOT / "rlvr_decode" / part).readlink() == Path("..") / part


def test_only_what_runs_inside_vllm_imports_it_at_its_top():
    # The rollout engine's LoRA is a class of vLLM's own kind, which vLLM itself imports by name.
    inside = {"one_adapter.py"}
    for part, path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_top = {
            name.split(".")[0]
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in imports_of_node(node)
        }
        if part != "server" and "engine" not in path.parts and path.name not in inside:
            assert "vllm" not in at_top, path


def imports_of_node(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module]


def test_importing_the_package_loads_nothing_heavy(tmp_path):
    code = "import sys, rlvr_decode; print({'vllm', 'triton', 'fastapi', 'torch'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
