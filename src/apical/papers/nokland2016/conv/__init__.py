"""The convolutional network of tables 2 and 3."""

from apical.papers.nokland2016.conv.tables import TABLE2_CONV, TABLE3_CONV

__all__ = ["TABLE2_CONV", "TABLE3_CONV"]
