# `make` prints what there is. Everything is set up on the way; a second run starts at once.

.DEFAULT_GOAL := help
.PHONY: help serve test test-long matrix fuzz audit sbom check bench bench-smoke format environment document clean
.NOTPARALLEL:

ARGS ?=
EXTRAS ?=
VENV := .venv
RUN := $(VENV)/bin/python
SETUP := python="$$(sh tools/find_python)" && "$$python" tools/setup_environment.py

help: ## Show this list
	@echo "Sightline: a detector in live video, inside a latency budget."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  ARGS="..." goes to the program: make serve ARGS="--port 9000"'
	@echo '  RUNTIME=cpu|openvino|gpu overrules what set-up finds; PYTHON=... names the Python.'

serve: ## Start the server, http://127.0.0.1:8080
	@$(SETUP) --extras "store mqtt $(EXTRAS)"
	@exec $(RUN) -m server $(ARGS)

test: ## Format, lint, types and all tests; ARGS goes to pytest
	@$(SETUP) --extras "dev $(EXTRAS)" --for-tests
	@$(RUN) -m tools.check --tests -- $(ARGS)

test-long: ## Only the tests that take minutes: bad networks, floods, crowds, 10,000 offers
	@$(SETUP) --extras "dev $(EXTRAS)" --for-tests
	@$(RUN) -m pytest -m long $(ARGS)

matrix: ## Every case of docs/reliability.md, a quarter of an hour, and the page from it
	@$(SETUP) --extras "dev $(EXTRAS)" --for-tests
	@rm -rf .cache/matrix
	@$(RUN) -m pytest tests/reliability -m "" --matrix-out .cache/matrix $(ARGS); status=$$?; \
		$(RUN) -m tools.reliability_table .cache/matrix && exit $$status

fuzz: ## Feed every parser with damaged input; ARGS="sdp stun --seconds 600"
	@$(SETUP) --extras "fuzz"
	@$(RUN) -m tests.fuzz $(ARGS)

audit: ## Compare the pinned versions with the known advisories, online
	@$(SETUP) --extras "audit"
	@$(RUN) -m pip_audit --strict --disable-pip --no-deps -r constraints.txt $(ARGS)

sbom: ## Write sbom.cdx.json: the pinned dependencies as CycloneDX
	@$(SETUP) --extras "audit"
	@$(RUN) -m cyclonedx_py requirements constraints.txt --pyproject pyproject.toml -o sbom.cdx.json

check: ## Format, lint and types only
	@$(SETUP) --extras "dev $(EXTRAS)" --for-tests
	@$(RUN) -m tools.check

bench: ## Measure glass to glass; ARGS="glass --clients 3", ARGS=--help
	@$(SETUP) --extras dev
	@exec $(RUN) -m bench $(or $(ARGS),glass)

# Ratios within rounds, so the machine may be busy; 4 on a quiet one, and less than half of that is
# a fault of ours. Under two minutes, and no other environment is needed.
bench-smoke: ## Hold the line: fails when we are not twice as fast as the usual aiortc server
	@$(SETUP) --extras dev
	@exec $(RUN) -m bench compare --against aiortc --clients 1 --runs 4 --seconds 4 --warmup 2 \
		--no-floor --at-least 2 --within 105 --out .cache/bench-smoke $(ARGS)

format: ## Rewrite the sources in house format
	@$(SETUP) --extras dev
	@$(RUN) -m ruff check --quiet --fix . || true
	@$(RUN) -m ruff format .

document: ## Rewrite what is made from tables: docs/configuration.md, docs/api.md, the Grafana dashboard
	@$(SETUP)
	@$(RUN) -m tools.document_settings
	@$(RUN) -m tools.document_api
	@$(RUN) -m tools.make_dashboard

environment: ## Set up only; EXTRAS="train evaluate" adds what those tools need
	@$(SETUP) --extras "$(EXTRAS)"

clean: ## Remove the environment and all caches
	rm -rf $(VENV) bench/peers .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
