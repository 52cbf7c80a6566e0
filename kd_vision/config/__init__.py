"""The typed tree of a run, the loader, overrides and recipes."""
