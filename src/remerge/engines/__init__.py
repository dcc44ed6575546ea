"""Other people's converters, quantisers and servers, each in an environment of its own."""
