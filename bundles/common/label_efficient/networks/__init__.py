"""Backbones, block attention, first weights, released weights."""
