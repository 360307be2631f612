"""How the checkpoints of the pocket world are made: architectures, tokenizer, training, measurement.

`cli` is part of the command line and does not wait for torch: modules are imported by name.
"""
