"""`make bench`: every comparison that this machine can make, and the table in the README.

    python benchmarks/bench.py [ROW …] [--render]

Each row is a script of its own, in a process of its own, which checks its results first and finds
nothing if they are wrong. What they find, with device, versions and commit, goes to
results/bench.jsonl; the latest of each row goes into results/bench.md, results/bench.png and,
between the marks, into README.md. A row that fails says so, in the table too, and the others still
run; the exit status is then 1. A bar that does not hold is a result, not a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_table import render
from findings import HERE, RESULTS, append, surroundings

# Installed beside the environment, which pins other versions of what they need.
RIVALS = {"trl": "1.16.0"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One script with the flags of a quick run.

    rival    a package that it is measured against, of `RIVALS`.
    seconds  after which it is ended.
    """

    command: str
    rival: str | None = None
    seconds: int = 600


ROWS = {
    "exactness": Row(command="exactness.py"),
    "draws": Row(command="draws.py"),
    "kernels": Row(command="kernels.py --rows 16 --dtypes bf16"),
    "layers": Row(command="layers.py"),
    "decode-bf16": Row(
        command="decode.py --dtype bfloat16 --concurrency 1 8 32 --long 8 --rounds 7", seconds=1200
    ),
    "decode-fp32": Row(command="decode.py --concurrency 1 16 --rounds 2 --rivals", seconds=900),
    "scaling": Row(command="scaling.py --check"),
    "speculation": Row(command="speculation.py"),
    "train-step": Row(command="train_step.py --threads 2", rival="trl"),
    "geora-start": Row(command="geora_init.py"),
    "growth": Row(command="growth.py"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the tables")
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if unknown := sorted(set(args.rows) - set(ROWS)):
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    failed = []
    began = time.monotonic()
    for name in [] if args.render else args.rows or ROWS:
        print(f"\n== {name}", flush=True)
        record = measure(name, ROWS[name], args.results)
        append(args.results / "bench.jsonl", record)
        if "failed" in record:
            failed.append(name)
            print(f"failed: {record['failed']}", flush=True)
    print(f"\n{render(args.results, args.readme, order=tuple(ROWS))}")
    print(f"{(time.monotonic() - began) / 60:.1f} minutes", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def measure(name: str, row: Row, results: Path) -> dict[str, Any]:
    """Run one row; what it found, or why it found nothing."""
    began = time.monotonic()
    record: dict[str, Any] = {"row": name, **surroundings()}
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "findings.jsonl"
        try:
            record["failed"] = run(row, file, Path(scratch), results)
        except subprocess.TimeoutExpired:
            record["failed"] = f"took more than {row.seconds} s"
        except subprocess.CalledProcessError as error:
            record["failed"] = f"could not install {row.rival}: pip's status {error.returncode}"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    record["findings"] = [json.loads(line) for line in lines]
    if record["failed"] is None:
        del record["failed"]
        if not lines:
            record["failed"] = "found nothing"
    return record | {"seconds": round(time.monotonic() - began, 1)}


def run(row: Row, findings: Path, scratch: Path, results: Path) -> str | None:
    """Run a script; the last line of its complaint if it did not succeed."""
    environment = os.environ | {
        "BENCH_RESULTS": str(results.absolute()),
        "VLLM_CACHE_ROOT": str(scratch / "vllm"),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if row.rival:
        paths = [str(install(row.rival)), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    script, *flags = shlex.split(row.command)
    command = [sys.executable, str(HERE / script), *flags, "--findings", str(findings)]
    with (scratch / "complaint").open("w+", encoding="utf-8", errors="replace") as complaint:
        process = subprocess.Popen(
            command, env=environment, stderr=complaint, start_new_session=True
        )
        try:
            status = process.wait(row.seconds)
        finally:
            if process.poll() is None:
                # With the processes that it has started.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        complaint.seek(0)
        said = [line.strip() for line in complaint if line.strip()]
    if status == 0:
        return None
    print(*said[-20:], sep="\n", file=sys.stderr)
    return said[-1][:300] if said else f"exit status {status}"


def install(package: str) -> Path:
    """A rival in a folder of the environment's own, without what it depends on."""
    wanted = f"{package}=={RIVALS[package]}"
    folder = Path(sys.prefix) / "rivals" / wanted
    if not folder.exists():
        flags = ["install", "-q", "--no-deps", "--target", str(folder), wanted]
        subprocess.run([sys.executable, "-m", "pip", *flags], check=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
