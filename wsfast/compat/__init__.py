"""Modules that answer for code people already import."""
