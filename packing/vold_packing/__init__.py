"""What the teacher and the trainer both need of transformers: sequences packed into one row, and the attention that
keeps them apart; and what of transformers both build on beyond its documentation.

Tensors in, tensors out: no files, no network, no configuration. Its modules are imported by name, for each brings
transformers with it.
"""
