"""Thin adapters to NVIDIA's production libraries: one module per library, none imported before its kernel is bound."""
