"""The page, the pictures and the figures that a run leaves."""
