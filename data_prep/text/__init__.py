"""Text before tokenization: cleaning, language detection, sentence segmentation."""
