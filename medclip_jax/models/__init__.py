"""Towers and heads: pure array-to-array modules that know nothing of data files."""
