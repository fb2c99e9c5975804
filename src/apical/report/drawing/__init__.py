"""Colours, scales, templates and SVG output that all pages and pictures share."""
