"""COCO metrics of anything that gives boxes, and the statistics of repeated runs."""
