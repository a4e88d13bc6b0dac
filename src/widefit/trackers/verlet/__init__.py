"""Verlet lists: a neuron that has not moved far fires on no sample but those near it."""
