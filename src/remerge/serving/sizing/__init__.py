"""From a model's shape, its weights and the memory there is to the sizes of a server."""
