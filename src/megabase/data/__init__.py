"""From a genome store to batches: regions, windows, datasets, prefetching, augmentation."""
