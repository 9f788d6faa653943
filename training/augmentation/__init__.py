"""Random views: drawn on the CPU, made in batches on the training device."""
