"""The parts of the training loop: augmentation, batches, optimisation, distillation, the state of a run."""
