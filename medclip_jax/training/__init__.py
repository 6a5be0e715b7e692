"""One loop for every system: configuration, state, step, checkpoints."""
