"""One file per subcommand, each a thin call into the pipeline."""
