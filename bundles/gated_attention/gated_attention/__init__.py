"""Gated deep attention: finds the discriminative instances of a microscopy image and looks at them again."""
