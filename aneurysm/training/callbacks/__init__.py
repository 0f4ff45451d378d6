"""Steps, epochs -> mean of the weights, scores, files, checkpoints: what happens beside the training loop."""
