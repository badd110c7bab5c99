"""Published checkpoints: their files, and their tensors in our trees and back."""
