"""Trained networks taken out of their run folders."""
