"""Where training meets models, optimizers and processes: parameters, states and hooks."""
