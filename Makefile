# LESSON=01 (or 01_simple_queue, or a path such as work/01_mine) selects a lesson.
# ARGS="..." is passed on: make run LESSON=01 ARGS="worker --name a", make test ARGS="-k claim -x".
# All paths are relative, because make cannot handle spaces in them.

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
setup := sh tools/setup.sh
last := $(lastword $(sort $(wildcard lessons/[0-9][0-9]_*)))

.PHONY: help setup demo test check crash race faults bench run build next watch work diff generate output psql clean

help: ## this list
	@echo 'make VERB [LESSON=01] [ARGS="..."]'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{ printf "%-12s%s\n", $$1, $$2 }'

setup: ## install everything again into .venv (the other verbs make it when it is missing)
	@rm -f .venv/.setup-run .venv/.setup-check .venv/.setup-watch
	@$(setup)

demo: ## run the story of the last lesson
	@$(setup)
	@cd $(last) && exec ../../$(PYTHON) main.py $(ARGS)

test: ## run the tests; with LESSON, only the lessons' tests, on that lesson or copy
	@$(setup) $(if $(LESSON),,watch)
	@$(PYTHON) -m pytest -n 4 --maxschedchunk 1 $(if $(LESSON),tests/test_[0-9][0-9]_*.py) $(ARGS)

check: ## everything that must hold before a commit: linters, types, and the texts against the code
	@$(setup) check watch
	@$(PYTHON) -m tools check $(ARGS)

crash: ## list a lesson's commits; AT=17 kills a worker there, WHEN=before before it; STEP=1 asks; TASK=, INPUT=
	@$(setup)
	@$(PYTHON) -m faults.crash "$(or $(LESSON),$(last))" $(if $(AT),--at $(AT)) $(if $(STEP),--step) \
		$(if $(WHEN),--when $(WHEN)) $(if $(TASK),--task $(TASK) --input '$(or $(INPUT),null)')

race: ## list a lesson's races; RACE=zombie plays one, RACE=path/to/my.race one of your own
	@$(setup)
	@$(PYTHON) -m tools race "$(LESSON)" $(if $(RACE),"$(RACE)")

faults: ## try the engine with every fault there is, and write the table into docs/promises.md
	@$(setup)
	@$(PYTHON) -m faults $(ARGS)

bench: ## what each lesson reaches, and what the bare database does; ARGS="--quick" in a minute
	@$(setup) $(filter peers,$(ARGS))
	@$(PYTHON) -m bench $(ARGS)

run: ## run a lesson; ARGS="worker --name a" plays a part of it by hand
	@$(setup)
	@lesson=$$($(PYTHON) -m shared.lessons "$(LESSON)") && python="$$(pwd)/$(PYTHON)" && \
		cd "$$lesson" && exec "$$python" main.py $(ARGS)

build: ## write a lesson yourself, in stages, in work/04_build; STAGE=3 begins at that one
	@$(setup)
	@$(PYTHON) -m tools build $(if $(LESSON),"$(LESSON)") $(if $(STAGE),--stage "$(STAGE)") $(if $(NAME),--name "$(NAME)")

next: ## how far your lesson is, and what comes next; ARGS=--hint shows a hint
	@$(setup)
	@$(PYTHON) -m tools next $(if $(LESSON),"$(LESSON)") $(ARGS)

watch: ## see a lesson's rows as they change, in a browser; ARGS=--control: with buttons; =--terminal: here
	@$(setup) watch
	@$(PYTHON) -m glass "$(or $(LESSON),$(last))" $(ARGS)

work: ## copy a lesson to work/01_mine, to change it at will; NAME=second calls it 01_second
	@$(setup)
	@$(PYTHON) -m tools work $(if $(LESSON),"$(LESSON)") $(if $(NAME),"$(NAME)")

diff: ## what a lesson changes in the one before it; what your copy changes in its lesson
	@$(setup)
	@$(PYTHON) -m tools diff $(if $(LESSON),"$(LESSON)") $(ARGS)

generate: ## make db/ again from schema.sql and queries.sql, with sqlc
	@$(setup)
	@$(PYTHON) -m tools generate $(if $(LESSON),"$(LESSON)") $(ARGS)

output: ## run the commands that the lessons show and write their output into the READMEs
	@$(setup)
	@$(PYTHON) -m tools output $(if $(LESSON),"$(LESSON)") $(ARGS)

psql: ## look into the database; with LESSON, at that lesson's tables
	@$(setup)
	@$(PYTHON) -m tools psql $(if $(LESSON),"$(LESSON)")

clean: ## stop the embedded Postgres and remove its data
	@$(setup)
	@$(PYTHON) -m tools clean
