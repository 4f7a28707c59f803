"""Image files to uint8 pixels, lists of them, label budgets, batches."""
