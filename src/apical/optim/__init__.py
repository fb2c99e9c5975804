"""Optimizers that know synapses."""
