# Two commands: `make upscale` and `make test`. The rest is listed by `make help`.
# TORCH_INDEX: for targets that need torch (not upscale and serve), an extra package index with CPU-only builds of it (on
# Linux x86-64 the default index serves the CUDA build, several GB). Unset by default.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
IN ?= samples/astronaut.jpg
OUT ?=
SETS ?= ../shared/bench
DATA ?= ../shared/train
HOURS ?= 0.1
MODEL ?= compact-x2
# On all processors, but each process of the tests takes up to a gigabyte; tests/conftest.py says who does what.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4
STACK ?= upscaler

.PHONY: help upscale serve test check lint types fast unit infra requirements image server-image invoke preflight batch-image redrive image-lifecycle bench quality train fuzz clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(BIN)/python pyproject.toml
	$(PIP) -e .
	@touch $@

$(VENV)/.service: $(VENV)/.core
	$(PIP) -e '.[service]'
	@touch $@

$(VENV)/.dev: $(VENV)/.service
	$(PIP) -e '.[service,torch,dev]'
	@touch $@

upscale: $(VENV)/.core ## upscale IN=photo.jpg to OUT (default: beside it) with the embedded model
	@$(BIN)/python -m core "$(IN)" $(if $(OUT),--output "$(OUT)") $(ARGS)

serve: $(VENV)/.service ## the whole service on this machine
	@$(BIN)/python -m handler

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

fast: $(VENV)/.dev
	$(PYTEST) -q -m "not slow" tests/unit

check: lint ## the fast loop: lint, types and the unit tests that are quick
	@$(MAKE) --no-print-directory -j2 types fast

unit: $(VENV)/.dev
	$(PYTEST)

# Types beside the tests, which wait for their servers now and then.
test: lint ## lint, types and all tests that this machine can run
	@$(MAKE) --no-print-directory -j2 types unit

# The deployment tools have dependencies of their own that do not go with ours.
$(VENV)-infra/.done:
	$(PYTHON) -m venv $(VENV)-infra
	$(VENV)-infra/bin/python -m pip install --quiet --disable-pip-version-check aws-sam-cli checkov cfn-lint uv
	@touch $@

infra: $(VENV)-infra/.done ## check template.yaml and the Dockerfile
	SAM_CLI_TELEMETRY=0 AWS_DEFAULT_REGION=us-east-1 $(VENV)-infra/bin/sam validate --lint
	$(VENV)-infra/bin/checkov -f template.yaml --framework cloudformation --compact --quiet --skip-download
	$(VENV)-infra/bin/checkov -f Dockerfile --framework dockerfile --compact --quiet --skip-download

requirements: $(VENV)-infra/.done ## make infra/requirements.txt anew from pyproject.toml
	UV=$(VENV)-infra/bin/uv sh infra/requirements.sh

# BASE_IMAGE: another base image than the Dockerfile's; TORCH_INDEX: another index for torch.
image: ## the container image of the functions (needs Docker)
	docker build --target lambda --tag upscaler $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) \
	  $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) .

server-image: ## the whole service as a container: docker run -p 8000:8000 upscaler-server (needs Docker)
	docker build --target server --tag upscaler-server $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE) \
	  --build-arg BATCH_BASE_IMAGE=$(BASE_IMAGE)) $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) .

invoke: $(VENV)-infra/.done ## one request through the real container (needs Docker)
	SAM_CLI_TELEMETRY=0 $(VENV)-infra/bin/sam build $(if $(BASE_IMAGE)$(TORCH_INDEX),--parameter-overrides \
	  $(if $(BASE_IMAGE),BaseImage=$(BASE_IMAGE)) $(if $(TORCH_INDEX),TorchIndex=$(TORCH_INDEX)))
	SAM_CLI_TELEMETRY=0 $(VENV)-infra/bin/sam local invoke ApiFunction --event tests/events/rest_upscale.json

# Parameters by their names in capitals with underscores, such as SPOT_VCPUS=16; others in PARAMETERS="Name=value ...".
preflight: $(VENV)/.service ## what this account and region would refuse, before a deploy
	@$(BIN)/python infra/account.py preflight STACK=$(STACK) $(if $(SPOT_VCPUS),SpotVcpus=$(SPOT_VCPUS)) \
	  $(if $(ON_DEMAND_VCPUS),OnDemandVcpus=$(ON_DEMAND_VCPUS)) $(PARAMETERS)

redrive: $(VENV)/.service ## put the dead letters of STACK=upscaler back into its queue of uploads
	@$(BIN)/python infra/account.py redrive $(STACK)

image-lifecycle: $(VENV)/.service ## keep the last three images of each function of STACK=upscaler
	@$(BIN)/python infra/account.py image-lifecycle $(STACK)

batch-image: ## build the GPU jobs' image and push it to the repository of STACK=upscaler (needs Docker and the AWS CLI)
	@repository=$$(aws cloudformation describe-stacks --stack-name $(STACK) --output text \
	  --query "Stacks[0].Outputs[?OutputKey=='BatchRepositoryUri'].OutputValue") && test -n "$$repository" || \
	  { echo "$(STACK) has no GPU jobs: sam deploy --save-params --parameter-overrides SpotVcpus=16"; exit 1; }; \
	set -e; docker build --platform linux/amd64 --target batch --tag "$$repository:latest" .; \
	aws ecr get-login-password | docker login --username AWS --password-stdin "$${repository%%/*}"; \
	docker push "$$repository:latest"

bench: $(VENV)/.dev ## every benchmark in turn, or BENCH="photo memory", to bench/results.md with a plot
	$(BIN)/python -m bench $(BENCH)

quality: $(VENV)/.dev ## figures at x2 and x4 on SETS=folder with Set5, Set14, Kodak24; crops in build/quality-x2.png, -x4
	@mkdir -p build
	$(BIN)/python -m bench.quality --sets "$(SETS)" --scale 2 4 --peers --sheet build/quality.png

train: $(VENV)/.dev ## train MODEL=compact-x2 on DATA=folders for HOURS=0.1, from START=, with TEACHER=, into runs/
	$(BIN)/python -m training.train $(MODEL) --data $(DATA) --run runs/$(MODEL) --hours $(HOURS) \
	  $(if $(START),--start "$(START)") $(if $(TEACHER),--teacher "$(TEACHER)")

fuzz: $(VENV)/.dev ## ten minutes of coverage-guided fuzzing of the decoders
	$(PIP) -e '.[fuzz]'
	mkdir -p build/fuzz
	$(BIN)/python -m tests.fuzz.fuzz_image build/fuzz -max_total_time=600 -rss_limit_mb=4000 -timeout=20 -artifact_prefix=build/

clean:
	rm -rf $(VENV) $(VENV)-infra build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
