"""GGUF files: which type each tensor gets, its bytes by ggml, and the file around them."""
