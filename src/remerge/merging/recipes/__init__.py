"""Recipe files: a merge written down, in remerge's own grammar or in that of another tool."""
