# For habit only: everything is done by bootstrap.py, which also works without make.
PYTHON ?= python3
COMMANDS := setup test reproduce lint docs bench clean

.PHONY: $(COMMANDS)
$(COMMANDS):
	$(PYTHON) bootstrap.py $@ $(ARGS)

.DEFAULT_GOAL := test
