"""What a release is made of: its files, the checks before it, the trial after it."""
