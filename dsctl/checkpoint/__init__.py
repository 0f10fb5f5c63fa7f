"""Open a checkpoint, match its tensors with a model's parameters, view a part of it. No torch."""
