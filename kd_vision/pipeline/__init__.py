"""The only place that builds things from a config and hands them to each other."""
