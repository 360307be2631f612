"""Building the checkpoints of the pocket world: architectures, tokenizer, training, measurement.

Nothing is imported here, so that `cli`, a part of the command line, starts without torch.
"""
