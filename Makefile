# Everything sets itself up: on a fresh machine `make demo` or `make test` is all there is to type.
# PYTHON: which interpreter makes .venv.  PIP_ARGS: extra arguments of pip, for example an index with CPU wheels.
PYTHON ?= python3
PIP_ARGS ?=
LOCK_ARGS ?=
BIN := .venv/bin
RUN := $(BIN)/python -m
# vLLM with its second model runner on a CPU, which scores candidates.
SECOND_RUNNER := VLLM_USE_V2_MODEL_RUNNER=1 TRITON_INTERPRET=1 PYTHONPATH=tests/helpers/triton_interpreter

# A file's tests stay together, for they share a server, and the longest files are the first; one thread each, or the
# processes would starve each other, and one process more than there are cores, as tests wait for servers to start.
# Bytecode is written, so that the processes which tests start need not compile vold.
WORKERS = $$("$(PYTHON)" -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))')
TEST_ENV := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
LEFT_OUT := not slow and not compose and not gpu
TEST = -m pytest -m '$(LEFT_OUT)' --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
# What needs neither torch nor what comes with it.
WITHOUT_TORCH := tests/unit/client tests/unit/common tests/unit/verifier \
	tests/services/client/test_client_teacher.py tests/services/verifier tests/services/project/test_wheel.py
TOOLS := cryptography grpc-stubs hypothesis import-linter mypy packaging psutil pytest pytest-timeout pytest-xdist ruff trustme \
	types-PyYAML types-cachetools types-protobuf
OURS := -m pip install --quiet --no-deps --no-build-isolation --editable .

# On a borrowed GPU: the environment of the PYTHON that is given, into which nothing is installed; .venv otherwise.
GPU_PYTHON := $(if $(filter file,$(origin PYTHON)),$(BIN)/python,$(PYTHON))
GPU_READY := $(if $(filter file,$(origin PYTHON)),install)
GPU_ENV := PYTHONPATH=$(CURDIR)/proto:packing:client:services/common:services/teacher:services/verifier:trainer
GPU_ENV := $(subst :,:$(CURDIR)/,$(GPU_ENV)) PYTHONUNBUFFERED=1
GPU_ARGS ?=

.PHONY: install wheel demo test test-gpu test-python test-slow test-vllm test-sglang test-compose test-newest test-oldest lint format proto lock bench bench-gpu bench-ablation attack compose clean

install: .venv/.installed  ## .venv with everything that locks/dev.txt pins, and vold itself, editable

.venv/.installed: pyproject.toml locks/dev.txt locks/build.txt
	"$(PYTHON)" -c 'import sys; assert sys.version_info >= (3, 11), "vold needs Python 3.11 or newer: make PYTHON=..."'
	"$(PYTHON)" -m venv .venv
	$(BIN)/python locks/install.py dev -- --quiet $(PIP_ARGS)
	$(BIN)/python $(OURS)
	touch $@

demo: install  ## the main job, end to end, in minutes: traces, SFT, GRPO, VOLD, judged on pictures
	$(BIN)/vold demo --out runs/demo

test: install  ## everything but what is marked slow, and what needs a Docker engine
	$(TEST_ENV) $(BIN)/python $(TEST)

test-slow: install  ## rebuilds the pocket checkpoints and checks what they can do
	$(RUN) pytest -m 'slow and not gpu'

test-gpu: $(GPU_READY)  ## what only a GPU can show; PYTHON=python3 takes that environment as it is
	$(GPU_ENV) "$(GPU_PYTHON)" -m pytest -m gpu $(GPU_ARGS) tests/gpu

bench-gpu: $(GPU_READY)  ## benchmarks/gpu.md, on a GPU, in 25 minutes; GPU_ARGS='teacher --label X' measures one part
	$(GPU_ENV) "$(GPU_PYTHON)" benchmarks/gpu.py $(GPU_ARGS)

test-vllm: .venv-vllm/.installed  ## what needs vLLM, with a CPU build of it: the backends' suite, and rollouts
	.venv-vllm/bin/python -m pytest -m vllm tests/services/teacher/test_backend_conformance.py tests/services/trainer/test_rollout_vllm*.py
	$(SECOND_RUNNER) .venv-vllm/bin/python -m pytest -m vllm tests/services/teacher/test_backend_conformance.py -k '[vllm'

# Triton too: the second model runner is interpreted with it.
.venv-vllm/.installed: pyproject.toml locks/test-vllm.txt locks/build.txt
	"$(PYTHON)" -m venv .venv-vllm
	.venv-vllm/bin/python locks/install.py test-vllm --with triton -- --quiet $(PIP_ARGS)
	.venv-vllm/bin/python $(OURS)
	touch $@

test-sglang: install .venv-sglang/.installed  ## the gateway in front of a stock SGLang, on a CPU
	VOLD_SGLANG_PYTHON=.venv-sglang/bin/python $(RUN) pytest -m sglang tests/services/teacher/test_backend_conformance.py

# Triton too: SGLang imports it whatever it runs on.
.venv-sglang/.installed: locks/test-sglang.txt locks/build.txt
	"$(PYTHON)" -m venv .venv-sglang
	.venv-sglang/bin/python locks/install.py test-sglang --cuda always -- --quiet $(PIP_ARGS)
	touch $@

# The ranges in pyproject.toml are claims: both ends, resolved today, in environments of their own. torch stays the lock's.
test-newest test-oldest: LEFT_OUT := not slow and not compose and not gpu and not locked
test-newest: RESOLUTION = highest
test-oldest: RESOLUTION = lowest-direct
test-newest test-oldest: test-%: install  ## everything but the slow tests, with the newest and the oldest in the ranges
	"$(PYTHON)" -m venv --clear .venv-$*
	$(BIN)/python locks/lock.py dev --resolution $(RESOLUTION) --out .venv-$*/requirements.txt
	.venv-$*/bin/python locks/install.py .venv-$*/requirements.txt -- --quiet $(PIP_ARGS)
	.venv-$*/bin/python $(OURS)
	$(TEST_ENV) .venv-$*/bin/python $(TEST)

# Their pins hold for every Python that pyproject.toml admits. Without torch, which is gigabytes where it is for CUDA.
test-python:  ## with another Python, as in `make test-python PYTHON=python3.13`: lint, client, verifier and wheel
	"$(PYTHON)" -m venv --clear .venv-python
	.venv-python/bin/python locks/install.py verifier -- --quiet $(PIP_ARGS)
	.venv-python/bin/python -m pip install --quiet $(PIP_ARGS) --constraint locks/dev.txt $(TOOLS)
	.venv-python/bin/python $(OURS)
	.venv-python/bin/python -m ruff check .
	.venv-python/bin/python -m ruff format --check .
	.venv-python/bin/python -m mypy
	.venv-python/bin/lint-imports
	$(TEST_ENV) .venv-python/bin/python $(TEST) $(WITHOUT_TORCH)

wheel:  ## dist/vold-VERSION-py3-none-any.whl, by the build tools of locks/build.txt and nothing else
	"$(PYTHON)" -m venv --clear .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet --no-deps $(PIP_ARGS) --requirement locks/build.txt
	rm -rf build dist
	.venv-wheel/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir dist .
	rm -rf build

test-compose: install  ## images, compose file and profiles against a Docker engine, which tests/compose/engine starts
	$(RUN) pytest --verbose -m compose tests/compose

lint: install
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(BIN)/lint-imports

format: install
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

proto: install  ## generate the stubs from proto/
	$(BIN)/python proto/generate.py

lock: install  ## complete pins in locks/ again; LOCK_ARGS=--upgrade takes the newest in the ranges
	$(BIN)/python locks/lock.py $(LOCK_ARGS)

bench: install  ## the tables of benchmarks/README.md
	$(BIN)/python benchmarks/run_all.py

bench-ablation: install  ## what the teacher adds: the runs that have no result yet; a minute and a half each on 2 cores
	$(BIN)/vold ablation --study claim

attack: install  ## attacks on real services: what an honest tenant waits, verdicts forged, bits learned: a quarter of an hour
	$(RUN) pytest -q --capture=no tests/services/attacks/test_forged_rewards.py tests/services/attacks/test_spy.py
	$(BIN)/python benchmarks/attack.py

compose:
	docker compose up --build --exit-code-from trainer

clean:
	rm -rf .venv .venv-* build *.egg-info .pytest_cache .mypy_cache .ruff_cache
