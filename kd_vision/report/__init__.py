"""Tables, plots and pages, written from the files of a run directory alone."""
