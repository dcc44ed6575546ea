"""The model card of an output: README.md, which people read and the Hub indexes."""
