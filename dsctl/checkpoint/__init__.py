"""What is there: open a checkpoint, match its tensors with the parameters of a model, look at part of it. No torch."""
