"""What a device runs: images, letterbox, ONNX session, decoding and NMS. No torch."""
