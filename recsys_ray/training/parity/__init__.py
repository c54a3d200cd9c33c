"""The proof that N workers train as one: losses and gradients at each step, whatever the engine."""
