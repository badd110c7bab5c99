"""Images from TFDS or a folder, as a resumable grain pipeline, without TensorFlow."""
