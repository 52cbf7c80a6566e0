"""Detectors of the ultralytics package. Only this package imports ultralytics; importing it alone imports nothing.

Settings are in `config`, `build` in `family`, dense heads (YOLO v3 to v12, 26) in `dense`, the transformer head
(RT-DETR) in `rtdetr`, files of weights in `weights`.
"""
