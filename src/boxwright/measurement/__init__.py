"""Measured speed as data: records, statistics, the noise verdict and tables. Pure."""
