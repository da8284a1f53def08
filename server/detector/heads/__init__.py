"""One module per family of models: recognising its outputs and decoding them."""
