# `make demo` and `make test` need a Python of 3.11 or newer and nothing else: they set up .venv on their first call
# and again when pyproject.toml or constraints.txt has changed.

VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
PLUGINS := .venv-plugins
BENCH ?= $(sort $(wildcard benchmarks/*.py))

.PHONY: demo test test-plugins bench lint docs clean

demo: $(READY)
	@$(RUN) -m fogline demo

# A process a core, each of one thread: most tests train small models, which more threads do not make faster.
test: $(READY)
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n logical --maxprocesses 4 $(ARGS)

# With the trainers and loggers of others, in an environment of their own: gigabytes, and versions that they choose.
test-plugins: $(PLUGINS)/.ready
	@OMP_NUM_THREADS=1 $(PLUGINS)/bin/python -m pytest -n logical --maxprocesses 2 tests_plugins $(ARGS)

bench: $(READY)
	@for script in $(BENCH); do echo "== $$script"; $(RUN) $$script || exit 1; done

lint: $(READY)
	@failed=0; for check in "ruff check ." "ruff format --check ." mypy codespell_lib; do \
		echo "== $$check"; $(RUN) -m $$check || failed=1; done; exit $$failed

docs: $(READY)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-input -c constraints.txt -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --site-dir build/site
	@echo "open build/site/index.html, or with search: python3 -m http.server --directory build/site"

clean:
	rm -rf $(VENV) $(PLUGINS) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(PLUGINS)/.ready: pyproject.toml constraints-plugins.txt
	@PYTHON="$(PYTHON)" .ci/setup $(PLUGINS) constraints-plugins.txt dev-plugins
	@touch $@

$(READY): pyproject.toml constraints.txt
	@PYTHON="$(PYTHON)" .ci/setup $(VENV)
	@touch $@
