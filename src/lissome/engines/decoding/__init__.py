"""Running decoders: the engine, how a token is drawn, and text in and out."""
