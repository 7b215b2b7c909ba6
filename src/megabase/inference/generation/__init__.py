"""Writing DNA: prompts, sampling, incremental decoding, and checks of what was written."""
