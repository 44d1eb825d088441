"""Models and indexes for other tools: ONNX, sentence-transformers, Parquet, Qdrant, the Hugging Face layout."""
