"""The parts of the transformers library's models as sections of rows: embeddings, layers, head."""
