"""One file per peer. `registry` lists them without importing any; the worker imports the one it runs."""
