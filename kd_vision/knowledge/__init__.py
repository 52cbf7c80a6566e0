"""The store: a teacher's predictions on images, written once, verified, and read by any number of runs."""
