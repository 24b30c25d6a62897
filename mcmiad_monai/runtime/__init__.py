"""What computes the network: PyTorch on CPU and GPU, ONNX Runtime, OpenVINO, and their files."""
