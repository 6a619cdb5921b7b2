"""What the interpreter accepts, the compiler may not."""

import os
import subprocess
import sys
from pathlib import Path


def test_every_kernel_compiles_for_gpus(tmp_path):
    script = Path(__file__).with_name("compile_for_gpu.py")
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 30
