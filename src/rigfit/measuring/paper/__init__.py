"""Run the real training step on tensors that have shapes and no storage, and write down what it asks of a device."""
