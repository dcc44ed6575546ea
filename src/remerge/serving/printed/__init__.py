"""A server as text: for a shell, for containers, for a cluster, for Ollama."""
