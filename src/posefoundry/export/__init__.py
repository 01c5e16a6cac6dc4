"""What ships: the trained model as ONNX and TensorRT, and the proof that each computes what PyTorch does."""
