# Every target works on a fresh clone: `setup` runs once, behind a stamp file.
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do $$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.stamp

newest = $$(ls -t runs/$(1)/*/checkpoints/last.ckpt | head -n 1)
SHIPPED := data/demo/supir_tiny.safetensors
DEMO := data/shards/demo
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

train: $(STAMP)  ## train both stages at tiny scale, then print the metric table (about eight minutes)
	$(PY) -m src.train experiment=robust_encoder
	$(PY) -m src.train experiment=zerosft
	$(PY) -m src.evaluate 'checkpoints={shipped: shipped:supir_tiny.safetensors}'

eval: $(STAMP)  ## print the metric table of the newest checkpoint
	$(PY) -m src.evaluate

test: $(STAMP)  ## run the quick tests (about a quarter of an hour on two cores)
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow" -n 2 --dist loadfile

test-all: $(STAMP)  ## run all tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile

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

# With photos=DIR all parts are trained on data/shards/prior, which holds the demo's samples and DIR's.
PRIOR_DATA = data.root=$(if $(photos),data/shards/prior,$(DEMO))
BASE = runs/prior.safetensors
# A second part at whole images of 128 follows crops of 64: attention then knows larger pictures.
WHOLE = data.crop_size=128
demo-prior: $(STAMP)  ## retrain and pack the model of the embedded default (hours); photos=DIR adds a folder's
	@if [ -n "$(photos)" ]; then $(MAKE) demo-data DEMO=data/shards/prior "photos=$(photos)"; fi
	$(PY) -m src.train experiment=vae $(PRIOR_DATA)
	$(PY) -m src.train experiment=prior $(PRIOR_DATA)
	$(PY) -m src.train experiment=prior $(PRIOR_DATA) $(WHOLE) data.global_batch=6 \
		"weights.prior=$(call newest,prior)" max_steps=220 val_every=220 optim.lr=6e-4 optim.warmup_steps=20
	$(PY) -m src.convert "input=[$(call newest,vae),$(call newest,prior)]" $(PACK) output=$(BASE) format=sdxl
	$(PY) -m src.train experiment=robust_encoder $(PRIOR_DATA) weights.sdxl=$(BASE) max_steps=9000
	$(PY) -m src.train experiment=robust_encoder $(PRIOR_DATA) weights.sdxl=$(BASE) $(WHOLE) data.global_batch=4 \
		"weights.robust_encoder=$(call newest,robust_encoder)" max_steps=5700 degradation.config.second.prob=0.1
	$(PY) -m src.train experiment=zerosft $(PRIOR_DATA) weights.sdxl=$(BASE) $(WHOLE) data.global_batch=6 \
		data.val_size=8 max_steps=2600
	$(PY) -m src.convert "input=$(call newest,zerosft)" $(PACK) output=$(SHIPPED) format=complete

clean:  ## delete the environment, caches and demo shards, but not runs/
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache data/shards
