"""Model families, their tokenizer, and the reader of published checkpoints."""
