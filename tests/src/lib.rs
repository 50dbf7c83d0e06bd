//! Runs the real programs as child processes; one scenario a file in `tests/`.
