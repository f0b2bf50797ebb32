# Every target works on a fresh clone: `setup` runs once, behind a stamp file.
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do $$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.stamp

newest = $$(ls -t runs/$(1)/*/checkpoints/last.ckpt | head -n 1)
SHIPPED := data/demo/robust_encoder.safetensors
DEMO := data/shards/demo
# Stage 1 of `make train` continues from the shipped encoder: fewer steps, at a lower rate.
FURTHER := max_steps=2400 val_every=1200 optim.lr=5e-4
PACK   := dtype=float16 overwrite=true license=Apache-2.0

.DEFAULT_GOAL := help
.PHONY: help setup train eval test test-all lint types bench demo-data demo-prior clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## build .venv from pyproject.toml and constraints.txt (one to three minutes)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; name one with: make setup PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON); this takes one to three minutes, once."
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet uv
	@$(VENV)/bin/uv pip install --quiet --python $(PY) -c constraints.txt -e ".[dev]"
	@touch $@

train: $(STAMP)  ## train both stages at tiny scale, then print the metric table (under 10 minutes)
	$(PY) -m src.train experiment=robust_encoder weights.robust_encoder=$(SHIPPED) $(FURTHER)
	$(PY) -m src.train experiment=zerosft
	$(PY) -m src.evaluate

eval: $(STAMP)  ## print the metric table of the newest checkpoint
	$(PY) -m src.evaluate

test: $(STAMP)  ## run the quick tests (about 7 minutes on two cores)
	$(PY) -m pytest -m "not slow"

test-all: $(STAMP)  ## run all tests
	$(PY) -m pytest

lint: $(STAMP)  ## run ruff and the type checker
	$(PY) -m ruff check src tests benchmarks
	$(PY) -m pyright

types: $(STAMP)  ## run only the type checker
	$(PY) -m pyright

bench: $(STAMP)  ## run the benchmarks at small scale
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(PY) $$file || exit 1; done

demo-data: $(STAMP)  ## rebuild the embedded default's shards with the curation pipeline (a minute); photos=DIR adds a folder's
	rm -rf $(DEMO)-work
	$(PY) -c "from open_supir.data import write_demo_shards as w; w('$(DEMO)-work/candidates', folder='$(photos)' or None)"
	@for source in photos dead_leaves negative; do \
		$(PY) -m src.curate set=demo work=$(DEMO)-work shards.source=$$source || exit 1; done
	mv $(DEMO)-work/candidates/heldout $(DEMO)-work/demo/heldout
	rm -rf $(DEMO) && mv $(DEMO)-work/demo $(DEMO) && rm -rf $(DEMO)-work

# With photos=DIR the prior is trained on data/shards/prior, which holds the demo's samples and DIR's.
PRIOR_DATA = data.root=$(if $(photos),data/shards/prior,$(DEMO))
demo-prior: $(STAMP)  ## retrain and pack the tiny prior of the embedded default (an hour); photos=DIR adds a folder's
	@if [ -n "$(photos)" ]; then $(MAKE) demo-data DEMO=data/shards/prior "photos=$(photos)"; fi
	$(PY) -m src.train experiment=vae $(PRIOR_DATA)
	$(PY) -m src.train experiment=prior $(PRIOR_DATA)
	$(PY) -m src.convert "input=[$(call newest,vae),$(call newest,prior)]" $(PACK) \
		output=data/demo/prior.safetensors format=sdxl
	$(PY) -m src.train experiment=robust_encoder $(PRIOR_DATA)
	$(PY) -m src.train experiment=robust_encoder $(PRIOR_DATA) \
		"weights.robust_encoder=$(call newest,robust_encoder)" max_steps=3000 optim.lr=5e-4
	$(PY) -m src.convert "input=$(call newest,robust_encoder)" $(PACK) \
		output=$(SHIPPED) format=supir

clean:  ## delete the environment, caches and demo shards, but not runs/
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache data/shards
