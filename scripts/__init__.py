"""Scripts that are run from this folder's parent."""
