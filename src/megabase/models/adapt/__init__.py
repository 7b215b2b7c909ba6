"""Adapting a language model: classifiers, low-rank adapters and soft prompts."""
