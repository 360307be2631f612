"""Code on transformers that the teacher and the trainer share: sequences packed into one row, the attention that keeps
them apart, and the uses of transformers beyond its documentation.

Tensors in, tensors out: no files, no network, no configuration. Import the modules by name: each imports transformers.
"""
