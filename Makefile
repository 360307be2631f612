# Everything sets itself up: on a fresh machine `make demo` or `make test` is all there is to type.
# PYTHON: which interpreter makes .venv.  PIP_ARGS: extra arguments of pip, for example an index with CPU wheels.
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
RUN := $(BIN)/python -m
# vLLM with its second model runner on a CPU, which scores candidates.
SECOND_RUNNER := VLLM_USE_V2_MODEL_RUNNER=1 TRITON_INTERPRET=1 PYTHONPATH=tests/services/triton_interpreter

.PHONY: install demo test test-slow test-vllm test-sglang lint format proto bench bench-ablation compose clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "vold needs Python 3.11 or newer: make PYTHON=..."'
	$(PYTHON) -m venv .venv
	$(RUN) pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install  ## the main job, end to end, in minutes: traces, SFT, GRPO, VOLD, judged on pictures
	$(BIN)/vold demo --out runs/demo

# A file's tests stay together, for they share a server; one thread each, or the processes would starve each other.
test: install  ## everything but what is marked slow
	OMP_NUM_THREADS=1 $(RUN) pytest -m 'not slow' --numprocesses auto --maxprocesses 4 --dist loadfile

test-slow: install  ## rebuilds the pocket checkpoints and checks what they can do
	$(RUN) pytest -m slow

test-vllm: .venv-vllm/.installed  ## what needs vLLM, with a CPU build of it: the backends' suite, and rollouts
	.venv-vllm/bin/python -m pytest -m vllm tests/services/test_backend_conformance.py tests/services/test_rollout_vllm*.py
	$(SECOND_RUNNER) .venv-vllm/bin/python -m pytest -m vllm tests/services/test_backend_conformance.py -k '[vllm'

# torchvision and its like are not built for the torch that is there, and importing them fails.
.venv-vllm/.installed: pyproject.toml constraints.txt tests/requirements-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --requirement tests/requirements-vllm.txt --editable '.[teacher,trainer,verifier]'
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test-sglang: install .venv-sglang/.installed  ## the gateway in front of a stock SGLang, on a CPU
	VOLD_SGLANG_PYTHON=.venv-sglang/bin/python $(RUN) pytest -m sglang tests/services/test_backend_conformance.py

# Without dependencies: what SGLang asks for is CUDA's.
.venv-sglang/.installed: constraints.txt tests/requirements-sglang.txt
	$(PYTHON) -m venv .venv-sglang
	.venv-sglang/bin/python -m pip install --quiet $(PIP_ARGS) --no-deps --requirement tests/requirements-sglang.txt
	touch $@

lint: install
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

format: install
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

proto: install  ## generate the stubs from proto/
	$(BIN)/python proto/generate.py

bench: install  ## the tables of benchmarks/README.md
	$(BIN)/python benchmarks/run_all.py

bench-ablation: install  ## the component table, 3 seeds: about an hour on 2 cores
	$(BIN)/vold ablation --out runs/ablation --results benchmarks

compose:
	docker compose up --build --exit-code-from trainer

clean:
	rm -rf .venv .venv-vllm .venv-sglang build *.egg-info .pytest_cache .mypy_cache .ruff_cache
