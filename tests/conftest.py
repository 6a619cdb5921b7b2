"""Choices made before anything is imported: which model runner, which device, whose caches."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

V2_BACKEND = Path(__file__).parent / "engine" / "v2_backend"


def pytest_addoption(parser):
    parser.addoption(
        "--runner", choices=["v1", "v2"], default="v1", help="vLLM's model runner in tests/engine"
    )


def pytest_configure(config):
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_CACHE_ROOT", tempfile.mkdtemp(prefix="vllm-cache-"))
    if config.getoption("--runner") == "v2":
        # Found by Triton's entry-point search here and by the processes vLLM starts.
        sys.path.insert(0, str(V2_BACKEND))
        os.environ["PYTHONPATH"] = str(V2_BACKEND)
        os.environ["TRITON_INTERPRET"] = "1"
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"


# Before pytest-xdist, which reads the groups in the same hook.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    import torch

    # Of two processes of tests, one starts the server, and each module's engine starts once.
    for item in items:
        group = "server" if "server" in item.fixturenames else item.location[0]
        item.add_marker(pytest.mark.xdist_group(group))
    if not torch.cuda.is_available():
        on_gpu = [item for item in items if item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=on_gpu)
        items[:] = [item for item in items if item not in on_gpu]


def pytest_collection_finish(session):
    # pytest 9.2 keeps ids where pytest-xdist 3.8 does not write its groups.
    if session.config.getoption("loadgroup", default=False) and session.items:
        ungrouped = [item.nodeid for item in session.items if "@" not in item.nodeid]
        if ungrouped:
            raise pytest.UsageError(
                f"{ungrouped[0]} has no group: pytest-xdist would start each engine in every "
                "process; install pytest<9.2"
            )
