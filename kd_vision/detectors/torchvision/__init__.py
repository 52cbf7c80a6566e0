"""Detectors of torchvision, as teachers and as students. Importing this package alone imports nothing.

Settings are in `config`, `build` in `family`, dense heads (RetinaNet, FCOS, SSD, SSDLite) in `one_stage`, Faster R-CNN
in `two_stage`, networks in `models`, files of weights in `weights`.
"""
