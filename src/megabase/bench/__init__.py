"""Speed and memory of the models, measured on the machine at hand."""
