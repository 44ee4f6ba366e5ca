"""One trainer for every network of the project: state, step, loop, optimiser and callbacks."""
