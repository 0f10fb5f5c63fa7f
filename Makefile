# Every task is one of dev.py's, which needs nothing but Python 3.11 and pip. TORCH=gpu takes torch's CUDA build.
PYTHON ?= python3
TORCH ?= $(or $(DSCTL_TORCH),cpu)

TASKS = setup lint types tests test browser ray bench docs soak
.PHONY: $(TASKS)

$(TASKS):
	@$(PYTHON) dev.py $@ --torch $(TORCH)
