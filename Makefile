# The project's commands; README says what to type without make.
#
#   make demo       train, evaluate, draw and export van_b0 on real digits: work_dirs/demo
#   make test       the tests, at most 25 minutes on two cores
#   make test-all   the slow tests too, and on the lowest timm and PyTorch that setup.cfg admits
#   make lint       ruff and pyright
#   make cards      model cards, their index and pictures, and the zoo page, from cards.yml, configs/ and results/
#   make dist       sdist and wheel in dist/, checked
#
# The first call fills .venv, later calls reuse it. VENV and PYTHON choose others: make test VENV=.venv-312 PYTHON=python3.12

VENV := .venv
usable := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
PYTHON := $(shell for p in python3.11 python3.12 python3; do $$p -c '$(usable)' 2>/dev/null && { echo $$p; break; }; done)
module = $(VENV)/bin/python -P -m

EXTRAS.demo := train,export
EXTRAS.test := train,export,data,dev

.PHONY: demo test test-all lint cards dist env-demo env-test

demo: env-demo
	@$(VENV)/bin/python tools/demo.py

# Triton decides when it is imported whether it interprets kernels or compiles them: a process for each.
kernels := tests/kernels/triton
# Tests that share a fixture stay together: tests/conftest.py says which.
two := -n 2 --dist loadgroup

test: env-test
	$(module) pytest $(two) -m "not all" --ignore $(kernels)
	TRITON_INTERPRET=1 $(module) pytest $(two) -m "not all" $(kernels)

test-all: env-test
	$(module) pip install --quiet segmentation-models-pytorch transformers -c constraints.txt  # for tests/backbones/test_elsewhere.py
	$(module) pytest $(two) --ignore $(kernels)
	TRITON_INTERPRET=1 $(module) pytest $(two) $(kernels)
	$(lowest_timm)
	$(lowest_torch)

lint: env-test
	$(module) ruff check
	$(module) ruff format --check
	@mkdir -p build/links/vertebra  # pyproject.toml says what pyright needs it for
	@ln -sfn $(addprefix '$(CURDIR)'/,__init__.py backbones engine kernels tools) build/links/vertebra
	$(module) pyright --pythonpath $(VENV)/bin/python

cards: env-test
	$(VENV)/bin/python tools/make_cards.py

dist: env-test
	rm -rf dist
	$(module) build --no-isolation
	$(module) twine check --strict dist/*

# A stamp inside VENV holds what it was filled from, so content decides and not a file's date, and a clone that was moved
# or copied is installed again. `.unfinished` stands while pip runs: what a killed installation left is thrown away (one
# that failed is not, since pip takes back what it had begun).
env-demo env-test:
	@stamp() { echo '$(CURDIR)'; cat setup.cfg constraints.txt; }; \
	for have in $(@:env-%=%) test; do stamp | cmp -s - $(VENV)/$$have.stamp && exit 0; done; \
	if [ -e $(VENV)/.unfinished ]; then echo 'The last installation into $(VENV) was interrupted: starting afresh.'; rm -rf $(VENV); fi; \
	if [ ! -x $(VENV)/bin/python ]; then \
	  '$(PYTHON)' -c '$(usable)' 2>/dev/null || { echo 'No Python of version 3.11 or newer with the modules venv and ensurepip (Debian and' \
	    'Ubuntu: apt install python3-venv) was found; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python' >&2; exit 1; }; \
	fi; \
	set -e; mkdir -p $(VENV); touch $(VENV)/.unfinished; rm -f $(VENV)/*.stamp; \
	[ -x $(VENV)/bin/python ] || '$(PYTHON)' -m venv $(VENV); \
	[ -t 1 ] && quiet= || quiet=--quiet; \
	echo 'Installing vertebra[$(EXTRAS.$(@:env-%=%))] into $(VENV): minutes, and 6 GB of disk, because PyTorch brings CUDA along ...'; \
	$(VENV)/bin/python -m pip --disable-pip-version-check install $$quiet -e '.[$(EXTRAS.$(@:env-%=%))]' -c constraints.txt \
	  || { rm $(VENV)/.unfinished; exit 1; }; \
	stamp > $(VENV)/$(@:env-%=%).stamp; rm $(VENV)/.unfinished

# The pinned environment with one package exchanged: a folder that stands before site-packages.
timm_bound = $(shell sed -n 's/^ *timm>=//p' setup.cfg)
lowest := $(VENV)/lowest-timm
define lowest_timm
	[ -d $(lowest)/timm-$(timm_bound).dist-info ] || { rm -rf $(lowest) && \
	  $(module) pip install --no-deps --target $(lowest) timm==$(timm_bound); }
	PYTHONPATH=$(lowest) $(VENV)/bin/python -P -c 'import timm; assert timm.__version__ == "$(timm_bound)", timm.__version__'
	PYTHONPATH=$(lowest) $(module) pytest -n 2 tests/backbones
endef

# An environment of its own, since PyTorch brings its Triton along, whose interpreter knows NumPy before 2.4 only.
torch_bound = $(shell sed -n 's/^ *torch>=//p' setup.cfg)
older := $(VENV)/lowest-torch
define lowest_torch
	[ -f $(older)/$(torch_bound).stamp ] || { rm -rf $(older) && $(module) venv $(older) && \
	  $(older)/bin/python -m pip --disable-pip-version-check install --quiet -e '.[export]' pytest pytest-xdist pytest-timeout \
	    'torch==$(torch_bound).*' 'numpy<2.4' timm==$(timm_bound) && touch $(older)/$(torch_bound).stamp; }
	$(older)/bin/python -P -m pytest -n 2 -m "not all" tests/backbones tests/kernels --ignore $(kernels)
	TRITON_INTERPRET=1 $(older)/bin/python -P -m pytest -n 2 -m "not all" $(kernels)
endef
