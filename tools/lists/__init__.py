"""Datalists: made from folders, tables and arrays, checked, split, and packed."""
