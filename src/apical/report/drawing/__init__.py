"""Colours, scales and templates that all pages share."""
