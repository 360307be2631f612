"""Code on transformers that the teacher and the trainer share: sequences packed into one row, the attention that keeps
them apart, the marks of tokenizers that texts may spell, and the uses of transformers beyond its documentation.

Tensors, texts and ids in and out: no files, no network, no configuration. Import the modules by name: each imports
transformers or tokenizers.
"""
