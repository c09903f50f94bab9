"""Adapting a model to annotated slices and scoring it: data, augmentation, losses, the training loop, metrics."""
