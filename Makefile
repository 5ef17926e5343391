# What one types. Plain `make` prints the list; the lines that begin with ## are that list.
#
#   results/runs/<experiment>-<model>-<seed>/run.json      a trained checkpoint     python -m train
#   results/scores/<experiment>-<model>-<seed>.csv         its score rows           python -m evals score
#   results/table.md, results/report.html                  what the rows say        python -m evals compare, report
#
# These are real files, so whatever is there is not made again, and a command that was stopped goes on where it was.
# The list of experiments is the listing of train/experiments. Works with GNU make from 3.81, which macOS has.

##@ Variables (make train-joint ON=miniature SEEDS="0 1 2" SET="update.lr=2e-5 iterations=50")
## ON=MODEL | miniature, sd15, sd2, sdxl, or with _8gpus, _1gpu; eval, compare: every model
## SEEDS="0 1 2" | train: 0 unless given; reproduce: 0 1 2; eval, compare, report: all that is there
## SET="field=value ..." | changes fields of the experiment; values may have spaces in them
## ARGS="--jobs 2" | further options of methods (python -m bench.methods --help)
## TERMS="owner/name ..." | weights whose terms you may accept (python -m evals licences)
## GPUS=2 | processes, one to a GPU; without a GPU they share the CPU
## PYTHON=python3.12 | makes .venv with this Python (3.11 or newer)

ON_IS_GIVEN := $(filter-out undefined default,$(origin ON))
ifeq ($(ON_IS_GIVEN),)
GPU := $(shell { nvidia-smi -L || ls -d /dev/kfd; } 2>/dev/null | head -n 1)
ON := $(if $(GPU),sd2,miniature)
endif
SEEDS ?=
SET ?=
GPUS ?= 1
TERMS ?=
ARGS ?=
RESULTS ?= results
DEMO_SET ?= iterations=24 update.lr=1e-4 tasks.imagereward.batch=96 tasks.compositionality.batch=96

comma := ,
space := $(subst ,, )
$(if $(filter command,$(firstword $(origin HOSTS))),$(error HOSTS is for train/hosts.sh: make trains on this host alone))
NO_FOLDER = $(error RESULTS="$(RESULTS)" must be one folder$(comma) without spaces$(comma) : and % in its name: make takes them for its own)
# Names are made of these, so what is no name is refused before anything is made of it.
refuse = $(if $(shell printf '%s\n' '$(strip $1)' | tr ' ' '\n' | grep -vxE '$2'),$(error $3))
$(if $(SEEDS),$(call refuse,$(SEEDS),0|[1-9][0-9]{0$(comma)17},SEEDS="$(SEEDS)" must be whole numbers$(comma) such as SEEDS="0 1 2"))
$(call refuse,$(ON),[A-Za-z0-9_]+,ON="$(ON)" must be one model$(comma) such as miniature$(comma) sd2 or sdxl_1gpu)
$(call refuse,$(GPUS),[1-9][0-9]*,GPUS="$(GPUS)" must be a number of processes$(comma) 1 or more)
$(if $(filter 1,$(words $(RESULTS))),$(if $(findstring %,$(RESULTS))$(findstring :,$(RESULTS)),$(NO_FOLDER)),$(NO_FOLDER))
# A word without = goes on with the value before it.
SPACED := $(strip $(foreach word,$(SET),$(if $(findstring =,$(word)),,$(word))))
$(if $(SPACED),$(if $(findstring =,$(firstword $(SET))),,$(error SET="$(SET)" must be fields with values$(comma) such as SET="update.lr=2e-5 iterations=50")))
$(if $(SPACED),$(if $(findstring $(space)$(space),$(subst $(shell printf '\t'),$(space)$(space),$(SET))),$(error SET="$(SET)" has several spaces in a row$(comma) of which make leaves one: give such a value to python -m train EXPERIMENT --set 'field=value')))
$(if $(filter 1/1,$(words $(ON))/$(words $(GPUS))),,$(error ON="$(ON)" and GPUS="$(GPUS)" must be one value each))

# Those with an underscore in the name are beside the paper: other ways to mix rewards, and experiments as other methods train them.
FILES := $(filter-out _%,$(basename $(notdir $(wildcard train/experiments/*.py))))
METHODS := $(filter-out _% ppo,$(basename $(notdir $(wildcard train/methods/*.py))))
EXPERIMENTS := $(foreach file,$(FILES),$(if $(findstring _,$(file)),,$(file)))
BESIDE := $(filter-out $(EXPERIMENTS),$(FILES)) $(foreach file,$(filter-out base,$(FILES)),$(METHODS:%=$(file)_%))
TRAIN_SEEDS = $(or $(SEEDS),0)
REPRODUCE_SEEDS = $(or $(SEEDS),0 1 2)
WHY_ON = $(if $(ON_IS_GIVEN),as asked,the default$(comma) as this machine has $(if $(GPU),a GPU; ON=miniature is small,no GPU))

PY := .venv/bin/python
VENV := .venv/.complete
VENV_PARITY := .venv-parity/.complete
VENV_PEERS := .venv-peers/.complete
ACCEPT = $(if $(TERMS), $(TERMS:%=--accept-terms '%'))
PROCESSES = $(if $(filter-out 1,$(GPUS)), --processes $(GPUS))

# A name is <experiment>-<model>-<seed>, and none of the three has a dash in it.
part = $(word $1,$(subst -, ,$2))
names = $(foreach experiment,$1,$(foreach seed,$2,$(experiment)-$(ON)-$(seed)))
MODELS = $(if $(ON_IS_GIVEN),$(ON),*)
# What the same command trains or scores first is looked for before it is there.
TRAINED = $(call names,$(filter $(EXPERIMENTS) $(BESIDE),$(patsubst train-%,%,$(filter train-%,$(MAKECMDGOALS)))),$(TRAIN_SEEDS))
FINISHED = $(patsubst $(RESULTS)/runs/%/run.json,%,$(wildcard $(RESULTS)/runs/*-$(MODELS)-*/run.json)) $(TRAINED)
THEIR_BASES = $(foreach name,$(FINISHED),base-$(call part,2,$(name))-$(call part,3,$(name)))
TO_SCORE = $(if $(SEEDS),$(call names,$(EXPERIMENTS),$(SEEDS)),$(sort $(FINISHED) $(THEIR_BASES)))
SET_OF_RUN = $(if $(TRAINED),$(if $(filter $*,$(TRAINED)),$(SET)),$(SET))
NEXT = ' --set '
SETTINGS = $(call of_shell,$(subst ','\'',$(SET_OF_RUN)))
of_shell = $(if $1, --set '$(subst $(space)$(NEXT),$(NEXT),$(strip $(firstword $1) $(foreach word,$(wordlist 2,$(words $1),$1),$(if $(findstring =,$(word)),$(NEXT))$(word))))')
SCORED = $(patsubst %,$(RESULTS)/scores/%.csv,$(TO_SCORE))
SCORES = $(if $(SEEDS),$(SCORED),$(sort $(wildcard $(RESULTS)/scores/*-$(MODELS)-*.csv) $(if $(filter eval,$(MAKECMDGOALS)),$(SCORED))))

.DEFAULT_GOAL := help
.SUFFIXES:
# bench, train and the rest are folders too, and a folder would count as made
.PHONY: help pack demo test train check parity peers bench bench-check methods eval compare report reproduce miniature lock venv clean always
.PHONY: $(EXPERIMENTS:%=train-%) $(BESIDE:%=train-%) $(EXPERIMENTS:%=reproduce-%) $(BESIDE:%=reproduce-%)
# A run that was stopped is state to resume from, so nothing is deleted: not as intermediate, not on a signal. There is no
# .DELETE_ON_ERROR, because every file here is written whole, beside its place, and then renamed.
.SECONDARY:
.PRECIOUS: $(RESULTS)/runs/%/run.json $(RESULTS)/scores/%.csv $(RESULTS)/table.md $(RESULTS)/report.html

##@ Start here
## help | this list
help:
	@awk -F ' [|] ' '/^##@ /{printf "\n%s\n", substr($$0, 5)} /^## /{printf "  %-24s %s\n", substr($$1, 4), $$2}' Makefile
	@echo
	@echo "Experiments: $(or $(FILES),none yet)"
	$(if $(METHODS),@echo "Methods: $(METHODS) (make train-imagereward_$(firstword $(METHODS)); without one: the paper's)")

## demo | seven minutes on two CPU cores: trains joint, scores it and its base, table and report
DEMO = $(MAKE) --no-print-directory RESULTS=results/demo ON=miniature SEEDS=0 GPUS=1 EXPERIMENTS="base joint"
demo: $(VENV)
	@$(DEMO) SET= train-base
	@$(DEMO) SET="$(DEMO_SET)" train-joint
	@$(DEMO) SET= compare report
	@echo
	@echo "The table:  results/demo/table.md"
	@echo "The report: results/demo/report.html (one file, opens in a browser)"

## test | the test suite
# Each process takes whole files; more than four would want more memory than speed.
PARALLEL = -n logical --maxprocesses 4 --dist loadfile
test: $(VENV)
	$(PY) -m pytest -q -rs $(PARALLEL)
	$(if $(GPU),$(PY) -m pytest -q -rs -m gpu)

##@ From prompts to the table
## train-<experiment> | trains it; the same command again resumes
train:
	@echo "make train-<experiment>: choose from $(EXPERIMENTS:%=train-%)" >&2; exit 2

$(EXPERIMENTS:%=train-%) $(BESIDE:%=train-%): train-%: $(foreach seed,$(TRAIN_SEEDS),$(RESULTS)/runs/%-$(ON)-$(seed)/run.json)

.SECONDEXPANSION:
# make train-x SET=...: the trainer is always called for x, as it knows whether the run that is there was made with these
# settings. What the same command trains beside it, as eval does the base, is without them.
$(RESULTS)/runs/%/run.json: $$(if $$(SET),$$(if $$(filter $$*,$$(TRAINED)),always)) | $(VENV)
	@echo "$(call part,1,$*), seed $(call part,3,$*), on $(call part,2,$*) ($(WHY_ON))"
	$(PY) -m train $(call part,1,$*) --on $(call part,2,$*) --seed $(call part,3,$*) --out $(@D)$(PROCESSES)$(SETTINGS)$(ACCEPT)

## eval | scores every run that has no scores yet, and the base models they came from
eval: $(SCORED) | $(VENV)
	@$(if $(TO_SCORE),echo "Scored: $(TO_SCORE)",echo "no finished run in $(RESULTS)/runs: make train-<experiment> first" >&2; exit 2)

# Scores that are there are taken, also where the run that they came from is not (the committed ones); a run that is there
# and newer is scored again, and so is one that the same command trains. Without scores the run is made first.
RUN_OF = $(RESULTS)/runs/$*/run.json
RUN_TO_SCORE = $(if $(filter $*,$(TRAINED)),$(RUN_OF),$(if $(wildcard $(RESULTS)/scores/$*.csv),$(wildcard $(RUN_OF)),$(RUN_OF)))
$(RESULTS)/scores/%.csv: $$(RUN_TO_SCORE) | $(VENV)
	$(PY) -m evals score $(RESULTS)/runs/$* --out $@$(PROCESSES)$(ACCEPT)

## compare | the results table from the scores: no GPU, seconds
compare: $(RESULTS)/table.md

## report | the same as one HTML page, with pictures and curves
report: $(RESULTS)/report.html

# Always made anew: which scores go in depends on SEEDS and ON, of which no file time tells, and it takes seconds.
$(RESULTS)/table.md: $(SCORES) always | $(VENV)
	@$(need_scores)
	$(PY) -m evals compare $(SCORES) --out $@

$(RESULTS)/report.html: $(SCORES) always | $(VENV)
	@$(need_scores)
	$(PY) -m evals report $(SCORES) --runs $(RESULTS)/runs --images $(RESULTS)/images --out $@

## pack | results/scores.csv.xz: all score rows in one small file, as the repository keeps them
pack: $(SCORES) | $(VENV)
	@$(need_scores)
	$(PY) -m evals pack $(SCORES) --out $(RESULTS)/scores.csv.xz

PACKED = $(wildcard $(RESULTS)/scores.csv.xz)
need_scores = $(if $(SCORES),:,echo "no scores in $(RESULTS)/scores: make eval first$(INSTEAD)" >&2; exit 2)
INSTEAD = $(if $(PACKED),; for the packed ones: $(PY) -m evals compare $(PACKED) --out FILE.md)

## reproduce-<experiment> | the three in a row, and the report: train, eval, compare
# In steps of their own, so that each sees the files of the one before, with -j too. SET is not for the base.
$(EXPERIMENTS:%=reproduce-%) $(BESIDE:%=reproduce-%): reproduce-%: $(VENV)
	$(MAKE) SEEDS="$(REPRODUCE_SEEDS)" SET= train-base
	$(if $(filter base,$*),,$(MAKE) SEEDS="$(REPRODUCE_SEEDS)" train-$*)
	$(MAKE) SEEDS="$(REPRODUCE_SEEDS)" SET= EXPERIMENTS="$(sort base $*)" ON=$(ON) eval
	$(MAKE) SEEDS= SET= compare report

## reproduce | the same for all experiments: every table
reproduce: $(VENV)
	$(MAKE) SEEDS="$(REPRODUCE_SEEDS)" SET= train-base
	$(MAKE) SEEDS="$(REPRODUCE_SEEDS)" $(patsubst %,train-%,$(filter-out base,$(EXPERIMENTS)))
	$(MAKE) SEEDS="$(REPRODUCE_SEEDS)" SET= ON=$(ON) eval
	$(MAKE) SEEDS= SET= compare report

## methods | training methods at equal compute: a page of each reward in results (ARGS=--dry-run: cost)
methods: $(VENV)
	$(if $(strip $(SET)),$(error make methods takes no SET: a method's settings are in its file of train/methods))
	$(if $(filter-out miniature,$(if $(ON_IS_GIVEN),$(ON))),$(error make methods is on the miniature$(comma) not on ON=$(ON)))
	$(PY) -m bench.methods$(if $(filter-out results,$(RESULTS)), --out $(RESULTS) --root $(RESULTS)/methods)$(if $(SEEDS), --seeds $(subst $(space),$(comma),$(strip $(SEEDS))))$(if $(strip $(ARGS)), $(ARGS))

##@ Upkeep
# numpy's products with one thread: with more they feel what else a machine does, more than what they are timed beside.
ALONE = OPENBLAS_NUM_THREADS=1
## bench | throughput and memory
bench: $(VENV)
	$(ALONE) $(PY) -m pytest bench -q -rs

## bench-check | the same operations against this machine's record: exit code 1 where one is slower
bench-check: $(VENV)
	$(ALONE) $(PY) -m bench.check

## check | ruff, mypy and the fast tests
check: $(VENV)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m pytest -q -rs $(PARALLEL) -m "not slow"

## parity | imagereward against its authors' code, in an environment of its own: some 6 GB
parity: $(VENV_PARITY)
	$(PY) -m tests.parity

## peers | the environment of trl's DDPOTrainer, 6 GB, for python -m bench.peers
peers: $(VENV_PEERS)
	@echo "$(<D) is there: $(PY) -m bench.peers"

$(VENV_PEERS): bench/peers/requirements.lock | $(VENV)
$(VENV_PARITY): tests/parity/requirements.lock | $(VENV)
$(VENV_PARITY) $(VENV_PEERS):
	$(PY) -m uv venv --quiet --clear --python $(PY) $(@D)
	$(PY) -m uv pip install --python $(@D)/bin/python --require-hashes -r $<
	@touch $@

## miniature | rebuilds the miniature's models from their seeds, in results/miniature: hours
miniature: $(VENV)
	$(PY) -m train.miniature all

## venv | makes .venv from requirements.lock; the other targets do it by themselves
venv: $(VENV)

$(VENV): requirements.lock .ci/setup
	@PYTHON="$(PYTHON)" .ci/setup
	@touch $@

## lock | resolves requirements.in into requirements.lock, also in tests/parity and bench/peers
lock: $(VENV)
	$(RESOLVE) -o requirements.lock requirements.in
	$(RESOLVE) -o tests/parity/requirements.lock tests/parity/requirements.in
	$(RESOLVE) -o bench/peers/requirements.lock bench/peers/requirements.in

RESOLVE = $(PY) -m uv pip compile --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --quiet

## clean | removes the demo's results and the caches; keeps runs, scores and .venv
clean:
	rm -rf results/demo .benchmarks .mypy_cache .pytest_cache .ruff_cache

always:

train-%:
	@echo "unknown experiment '$*': choose from $(FILES)$(if $(METHODS),$(comma) or one of them and a method$(comma) <experiment>_<method>: $(METHODS))" >&2; exit 2

reproduce-%:
	@echo "unknown experiment '$*': choose from $(FILES)$(if $(METHODS),$(comma) or one of them and a method$(comma) <experiment>_<method>: $(METHODS))" >&2; exit 2
