"""Figures of predictions: metrics, calibration, the final evaluation of a classifier."""
