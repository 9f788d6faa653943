"""Other ways to serve the same bundle: each as its own documentation would have it written.

All use `deitlt.load`, so the graph, the session's options and the preprocessing are the same.
"""
