"""The losses: value, gradient, local least squares."""
