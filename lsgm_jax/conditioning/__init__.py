"""What a sample is to be like, as what a network looks at: labels, texts, maps."""
