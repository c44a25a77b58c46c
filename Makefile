# Everything a person runs. `make study` and `make test` are all it takes on a fresh clone.

PYTHON ?= python3
BIN := .venv/bin
METAOPT_DATA ?= $(abspath ../shared/data)
export METAOPT_DATA

.PHONY: help study test test-slow check format story curves sinusoids navigation slope bandits optimizers reproduce challenge challenge-short ladder worth pruning clinc portfolio readme screenshots bench bench-speed bench-executors bench-share bench-workers bench-environments bench-search bench-real bench-warm cluster torture load fuzz fuzz-guided fuzz-ci pins audit wheel clean

help:
	@echo "make study      set up, run studies/quickstart.yaml, print its leaderboard"
	@echo "make test       set up, run every test but the slow ones"
	@echo "make test-slow  set up, run the slow tests: minutes of meta-training each"
	@echo "make check      what CI runs: format, lint, types, import rules, tests"
	@echo "make format     format the code"
	@echo "make readme     fill the README's blocks, write docs/reference.md from docstrings"
	@echo "make screenshots take the README's pictures of a report and a terminal, five minutes; needs chromium"
	@echo "make bench      set up, measure task sampling beside easyfsl's, and a folder of 100,000 pictures"
	@echo "make bench-speed measure meta-training and evaluation beside four peers, 25 minutes of an idle machine"
	@echo "make bench-executors measure each learner under each executor, ten minutes of an idle machine"
	@echo "make bench-share say where the time of a study goes, three minutes"
	@echo "make bench-workers trials an hour with two workers beside one, ten minutes of an idle machine"
	@echo "make bench-environments measure environments beside Gymnasium's own, three minutes"
	@echo "make bench-search measure docs/results/search: strategies on surrogates, beside SMAC3, half an hour"
	@echo "make bench-real the search, Optuna and random search on Omniglot at equal CPU time: an hour and a half of a core"
	@echo "make bench-warm cold and warm studies on tasks unlike those of the portfolio, ten minutes"
	@echo "make cluster    measure docs/results/cluster: workers on PostgreSQL, killed and counted; needs PostgreSQL"
	@echo "make torture    measure docs/results/torture: twenty kinds of faults, 250 kills, databases stopped, disks filled; ten minutes"
	@echo "make fuzz       give study files, models and the command line a hundred times more nonsense than the tests do"
	@echo "make fuzz-guided  give readers and command line inputs that coverage leads to (atheris), a minute each"
	@echo "make pins       write .ci/requirements.txt, the hash of every package, after constraints.txt has changed"
	@echo "make audit      look these packages up among known vulnerabilities; says so where no list of them can be reached"
	@echo "make load       10,000 trials that do nothing and 500 real ones: does anything grow? half an hour"
	@echo "make story      measure docs/results/story, three minutes"
	@echo "make sinusoids  measure docs/results/sinusoid-steps, ten minutes"
	@echo "make navigation measure docs/results/navigation, half an hour"
	@echo "make slope      measure docs/results/slope: trained on gentle ground, tested uphill; an hour"
	@echo "make bandits    measure docs/results/bandits: RL2 beside Thompson sampling, UCB1 and greedy; forty minutes"
	@echo "make optimizers measure docs/results/optimizers, a minute"
	@echo "make challenge  the Omniglot challenge from five alphabets, three seeds of two sets: two hours of two cores"
	@echo "make challenge-short the same within ten CPU minutes a study: half an hour of two cores"
	@echo "make ladder     what each part of the challenge's pipeline is worth, half an hour of two cores"
	@echo "make worth      the search beside learners at their defaults, in the same CPU time, an hour of two cores"
	@echo "make pruning    what halving and racing save, beside studies without them, an hour of a core"
	@echo "make clinc      sentences of unseen classes, without a pretrained model, five divisions: half an hour of two cores"
	@echo "make reproduce  measure published figures again, docs/results/reproduce, a quarter of an hour"
	@echo "make portfolio  run small studies of each learner, from which others may begin (warm_start: builtin): an hour of a core"
	@echo "make curves     learning curves of learners that are far from their papers, docs/results/curves*: an hour and a quarter of two cores"
	@echo "make wheel      build the wheel into dist/"
	@echo "make clean      remove what the targets made, run folders excepted"

# Made anew where a dependency changed; otherwise a second call finds it done.
.venv/metaopt: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/dev: .venv/metaopt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

# As CI sets it up: every file that is installed has the hash that stands in .ci/requirements.txt.
.venv/ci: pyproject.toml .ci/requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes --requirement .ci/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@ .venv/metaopt .venv/dev

pins:
	$(PYTHON) .ci/pin.py

audit: .venv/metaopt
	$(BIN)/python .ci/audit.py

study: .venv/metaopt
	$(BIN)/metaopt study run quickstart --workers 2

test: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: .venv/dev
	$(BIN)/python -m pytest -m slow

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

story: .venv/dev
	$(BIN)/python docs/story.py
	$(BIN)/python docs/fill_readme.py

navigation: .venv/metaopt
	$(BIN)/python docs/navigation.py
	$(BIN)/python docs/fill_readme.py

slope: .venv/metaopt
	$(BIN)/python docs/slope.py
	$(BIN)/python docs/fill_readme.py

bandits: .venv/metaopt
	$(BIN)/python docs/bandits.py
	$(BIN)/python docs/fill_readme.py

curves: .venv/metaopt
	$(BIN)/python -W ignore docs/curves.py
	$(BIN)/python docs/fill_readme.py

sinusoids: .venv/metaopt
	$(BIN)/python docs/sinusoid_steps.py

optimizers: .venv/metaopt
	$(BIN)/python docs/optimizers.py

reproduce: .venv/metaopt
	$(BIN)/python docs/reproduce.py
	$(BIN)/python docs/fill_readme.py

challenge: .venv/metaopt
	$(BIN)/python docs/challenge.py --set final.cpu_seconds=900
	$(BIN)/python docs/fill_readme.py

challenge-short: .venv/metaopt
	$(BIN)/python docs/challenge.py --output runs/challenge-short --json docs/results/challenge-short.json
	$(BIN)/python docs/fill_readme.py

pruning: .venv/metaopt
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore docs/pruning.py

worth: .venv/metaopt
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore docs/worth.py
	$(BIN)/python docs/fill_readme.py

ladder: .venv/metaopt
	$(BIN)/python docs/ladder.py
	$(BIN)/python docs/fill_readme.py

clinc: .venv/metaopt
	$(BIN)/python docs/clinc.py
	$(BIN)/python docs/fill_readme.py

portfolio: .venv/metaopt
	$(BIN)/python docs/portfolio.py

readme: .venv/dev
	$(BIN)/python docs/fill_readme.py
	$(BIN)/python docs/reference.py

screenshots: .venv/dev
	$(BIN)/python docs/screenshots.py

bench-environments: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/environments.py --json docs/results/environments.json

# SMAC3 is a peer and no dependency: it lives in an environment of its own, over what .venv holds.
build/smac/done: .venv/metaopt benchmarks/over.sh
	benchmarks/over.sh $(BIN)/python build/smac
	build/smac/bin/python -m pip install --quiet --constraint constraints.txt smac==2.4.1
	@touch $@

bench-search: build/smac/done
	OMP_NUM_THREADS=1 build/smac/bin/python -W ignore benchmarks/search.py --json docs/results/search.json
	$(BIN)/python docs/fill_readme.py

bench-real: .venv/metaopt
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/search_real.py --set budget.cpu_seconds=15 \
		--set evaluation.tasks=200 --only metaopt "Optuna's TPE" "random search" --json docs/results/search-real.json

bench-warm: .venv/metaopt
	$(BIN)/python -W ignore benchmarks/warm.py --json docs/results/warm.json

bench: .venv/metaopt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt easyfsl
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/folder.py

build/peers/done: .venv/metaopt benchmarks/over.sh benchmarks/peers.sh
	benchmarks/peers.sh $(BIN)/python build/peers
	@touch $@

bench-speed: build/peers/done
	OMP_NUM_THREADS=1 build/peers/bin/python -W ignore benchmarks/speed.py --json docs/results/speed.json
	$(BIN)/python docs/fill_readme.py

bench-executors: .venv/metaopt
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/executors.py

bench-workers: .venv/metaopt
	OMP_NUM_THREADS=1 PYTHONPATH=docs $(BIN)/python -W ignore benchmarks/workers.py

bench-share: .venv/metaopt
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/share.py quickstart --timeout 20m --trials 12

cluster: .venv/dev
	$(BIN)/python -W ignore benchmarks/cluster.py --json docs/results/cluster.json

torture: .venv/dev
	$(BIN)/python -W ignore benchmarks/torture.py --kills 250 --json docs/results/torture.json
	$(BIN)/python docs/fill_readme.py

fuzz: .venv/dev
	METAOPT_FUZZ=$(or $(METAOPT_FUZZ),100) $(BIN)/python -m pytest tests/core/test_fuzz.py

# An environment of its own: atheris, which instruments code, is nothing that metaopt needs.
.venv/fuzz: .venv/dev
	$(PYTHON) -m venv .venv/fuzz-guided
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$(.venv/fuzz-guided/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/metaopt.pth"
	.venv/fuzz-guided/bin/python -m pip install --quiet --no-deps atheris==3.0.0
	@touch $@

fuzz-guided: .venv/fuzz
	PYTHONPATH=core:plugins .venv/fuzz-guided/bin/python -W ignore benchmarks/fuzz.py \
		--seconds $(or $(METAOPT_FUZZ_SECONDS),60) $(if $(METAOPT_FUZZ_KEEP),--keep --json docs/results/fuzz.json)

# A minute of inputs that nobody chose; where atheris cannot be had, hypothesis draws them, others each time.
fuzz-ci: .venv/dev
	if $(MAKE) --silent .venv/fuzz; then $(MAKE) fuzz-guided METAOPT_FUZZ_SECONDS=6; \
		else $(MAKE) fuzz METAOPT_FUZZ=2; fi

load: .venv/metaopt
	$(BIN)/python -W ignore benchmarks/load.py | tee docs/results/load.txt
	$(BIN)/python docs/fill_readme.py

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: .venv/dev
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

clean:
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
